"""What a configuration amounts to, found without images or weights: errors come before work."""

import logging
from dataclasses import asdict

import torch

from tlx.config import check_root
from tlx.data.augment import Augment
from tlx.data.datamodule import share_of_batch
from tlx.data.images import Decoding
from tlx.data.manifest import Manifest
from tlx.data.sources import build_manifest
from tlx.data.targets import TargetPolicy
from tlx.data.tta import tta_augment
from tlx.errors import UserError
from tlx.models.classifier import Classifier
from tlx.models.folder import Architecture, build_classifier
from tlx.models.heads import check_activation
from tlx.models.outputs import num_outputs
from tlx.models.preprocess import Preprocess
from tlx.models.weights import weights_member
from tlx.specs import Config, StageSpec
from tlx.training.devices import check_devices, choose_device, process_count
from tlx.training.optim import check_optimizer, check_schedule
from tlx.training.unfreezing import apply_stage, check_refreezing, has_batchnorm, plain_stages

log = logging.getLogger(__name__)

VIEWS = 8  # of a stage that can be cached, where nobody says how many: benchmarks/views.py


def preprocessing(config: Config, member: str | None = None) -> Preprocess:
    """What the network gets; `member` is torchvision's name for the weights, once it is known."""
    return Preprocess.for_weights(
        config.backbone.name,
        member or weights_member(config.backbone.name, config.backbone.weights),
        image_size=config.data.image_size,
        resize=config.data.resize,
        decoding=Decoding(config.data.alpha, config.data.icc),
        input=config.preprocess.input,
    )


def architecture(config: Config, num_classes: int, preprocess: Preprocess) -> Architecture:
    check_activation(config.head.activation, allow_softmax=config.head.allow_softmax)
    return Architecture(
        backbone=config.backbone.name,
        image_size=preprocess.image_size,
        num_outputs=num_outputs(config.loss, num_classes),
        pool=config.head.pool,
        hidden=config.head.hidden,
        activation=config.head.activation,
        dropout=config.head.dropout,
        classifier=config.backbone.classifier,
        winograd=config.trainer.winograd,
    )


def meta_classifier(config: Config, num_classes: int) -> Classifier:
    """The classifier without numbers in it: its names, shapes and counts."""
    with torch.device("meta"):
        return build_classifier(architecture(config, num_classes, preprocessing(config)))


def read_manifest(config: Config) -> Manifest:
    """Find, check, hash and split the images."""
    return build_manifest(config.data, seed=config.seed)


def stage_views(config: Config, classifier: Classifier, stage: StageSpec) -> int | None:
    """How many versions of a training image take turns in the stage; None: a new one every epoch.

    It follows from the configuration alone, never from what is measured or in the cache.
    """
    augment, given = Augment(**asdict(config.augment)), config.cache.views
    if there := len(augment.mirrorings):
        return there if given is None else min(given, there)
    if not augment.is_random:
        return 1
    if given is not None or config.cache.mode == "off":
        return given
    if why_not_cached(config, classifier, stage) is not None:
        return None
    return min(VIEWS, sum(stage_epochs(config, each) for each in config.stages))


def stage_epochs(config: Config, stage: StageSpec) -> int:
    """At most so many."""
    return min(stage.epochs, config.trainer.limit_epochs or stage.epochs)


def why_not_cached(config: Config, classifier: Classifier, stage: StageSpec) -> str | None:
    """Why the stage's frozen blocks cannot be computed ahead of it; None if they can."""
    frozen = classifier.backbone.before(classifier.cut(stage.train_from))
    if not frozen:
        return "nothing before what learns is wholly frozen"
    if stage.batchnorm != "frozen" and any(has_batchnorm(module) for module in frozen):
        return f"stage.{stage.name}.batchnorm={stage.batchnorm} lets frozen blocks change"
    if config.trainer.limit_train is not None:
        return "trainer.limit_train leaves most images out"
    return None


def check(config: Config) -> None:
    """Raise for every mistake that shows without reading images or weights."""
    check_devices(config.trainer)
    share_of_batch(config.data.batch_size, process_count(config.trainer))
    check_root(config.data)
    tta_augment(Augment(**asdict(config.augment)), config.tta)
    TargetPolicy(config.label_smoothing)
    on_gpu = choose_device(config.trainer.accelerator).type != "cpu"
    for stage in config.stages:
        check_schedule(stage.scheduler, stage.name)
        _check_fused(config, stage, on_gpu=on_gpu)
        _check_rates(config, stage)
    _check_input(config)
    classifier = meta_classifier(config, num_classes=2)
    stages = plain_stages(classifier, config.stages)
    for stage in stages:
        reason = why_not_cached(config, classifier, stage)
        if reason and config.cache.mode == "on":
            raise UserError(
                f"cache=on: stage {stage.name} cannot be cached exactly: {reason}. "
                "Use cache=auto, which caches where it is exact."
            )
    if not config.allow_refreeze:
        check_refreezing(classifier, stages)
    for stage in stages:
        apply_stage(classifier, stage)
        check_optimizer(stage, classifier, on_gpu=on_gpu)
        _check_batchnorm(config, stage, classifier)


def _check_input(config: Config) -> None:
    """Pretrained weights get the input that they were trained on, or it is said aloud."""
    name, weights = config.backbone.name, config.backbone.weights
    if weights is None:
        return
    given = preprocessing(config)
    expected = Preprocess.for_weights(name, weights_member(name, weights))
    if given.same_input(expected):
        return
    mismatch = (
        f"preprocess.input={config.preprocess.input} is not what the weights of {name} were "
        f"trained on. They expect {expected.describe_input()}; they would get "
        f"{given.describe_input()}."
    )
    if not config.preprocess.allow_mismatch:
        raise UserError(
            f"{mismatch} Set preprocess.input=weights, or, to see what the mismatch costs, "
            "preprocess.allow_mismatch=true."
        )
    log.warning("MISMATCH: %s Allowed by preprocess.allow_mismatch=true.", mismatch)


def _check_batchnorm(config: Config, stage: StageSpec, classifier: Classifier) -> None:
    """One image at a time may leave a single value a channel, which has no variance."""
    processes = process_count(config.trainer)
    if share_of_batch(config.data.batch_size, processes) > 1:
        return
    size = preprocessing(config).image_size
    try:
        with torch.no_grad():
            classifier(torch.empty(1, 3, size, size, device="meta"))
    except ValueError:
        policy = "batchnorm_learning" if stage.batchnorm == "frozen" else "batchnorm"
        raise UserError(
            f"stage {stage.name}: of one image with {size} pixels a side BatchNorm gets a single "
            f"value a channel, from which it cannot learn; give data.batch_size={2 * processes} or "
            f"more, or stage.{stage.name}.{policy}=frozen."
        ) from None


def _check_fused(config: Config, stage: StageSpec, *, on_gpu: bool) -> None:
    """Lightning cannot clip, nor we see gradients unscaled, where a GPU's optimizer is fused."""
    if not (on_gpu and stage.optimizer.settings.get("fused")):
        return
    if config.trainer.clip is not None or config.trainer.precision == "16-mixed":
        raise UserError(
            f"stage {stage.name}: an optimizer with fused=true goes neither with trainer.clip nor "
            "with trainer.precision=16-mixed on a GPU; leave fused out."
        )


def _check_rates(config: Config, stage: StageSpec) -> None:
    if stage.find_lr and process_count(config.trainer) > 1:
        raise UserError(
            f"stage.{stage.name}.lr=find: the sweep runs in one process. Find the rate with "
            "trainer.devices=1, then give it to this run."
        )
    if stage.l2_sp is not None and config.backbone.weights is None:
        raise UserError(
            f"stage.{stage.name}.l2_sp={stage.l2_sp:g} holds weights to the pretrained ones, but "
            "with backbone.weights=null there are none."
        )
