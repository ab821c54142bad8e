"""What the network and its stages show without an image: what learns, how fast, and in between."""

import copy
import math
from collections import Counter
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import SqueezeExcitation

from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.trial import config_key, trial
from tlx.models.classifier import HEAD, Classifier
from tlx.models.heads import Head
from tlx.specs import StageSpec
from tlx.training.devices import process_count
from tlx.training.optim import layer_group_rates

SQUASHING = (
    nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax, nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid,
)  # fmt: skip
FEW = 8  # images, from which BatchNorm's mean and variance are too rough
GENTLE = 0.1  # of the head's rate: what a backbone with its pretrained weights can stand


# ---------------------------------------------------------------- softmax and sigmoid


def softmax_or_sigmoid(case: Case) -> Iterator[Finding]:
    """Where units should be free. Attention and squeeze-and-excitation have theirs by design."""
    classifier = case.job.model.classifier
    layers = dict(classifier.head.layers.named_modules())
    linear = [name for name, module in layers.items() if isinstance(module, nn.Linear)]
    last = list(layers).index(linear[-1])
    for place, (name, module) in enumerate(layers.items()):
        if isinstance(module, SQUASHING):
            if place > last:
                yield _before_the_loss(name, module, layers[linear[-1]])
            else:
                yield _hidden(classifier, case, name)
    for path in _squashing_blocks(classifier):
        yield Finding(
            "softmax", "error",
            f"{path} is a softmax or sigmoid between the backbone's layers: what follows gets "
            "values in 0-1 only, and hardly a gradient flows back",
            f"put ReLU in the place of {path}",
        )  # fmt: skip


def _squashing_blocks(classifier: Classifier) -> Iterator[str]:
    designed = {
        inner
        for module in classifier.backbone.modules()
        if isinstance(module, SqueezeExcitation)
        for inner in module.modules()
    }
    for path, module in classifier.backbone.blocks.named_modules():
        if isinstance(module, SQUASHING) and module not in designed:
            yield path


def _before_the_loss(name: str, module: nn.Module, output: nn.Module) -> Finding:
    width = int(getattr(output, "out_features", 2))
    # The best that an output within 0-1 can do: 1 for the right class and 0 for the others.
    floor = math.log(1 + (width - 1) / math.e) if width > 1 else math.log(2)
    harmless = isinstance(module, nn.LogSoftmax)
    return Finding(
        "softmax",
        "warning" if harmless else "error",
        f"head.layers.{name} is a {type(module).__name__} after the last layer, and the loss "
        "applies its own: "
        + ("twice does no harm, but the outputs are no logits" if harmless else
           f"even a perfect network's loss stays at {floor:.2f} or above"),
        f"end the head with its Linear layer: remove head.layers.{name}",
        {"outputs": width, "lowest_loss": 0.0 if harmless else floor},
    )  # fmt: skip


def _hidden(classifier: Classifier, case: Case, name: str) -> Finding:
    shape = classifier.backbone.feature_shape(case.job.architecture.image_size)
    own = classifier.head.layers.get_submodule(name)
    mean, gradient = _tried(classifier.head, shape, name, own)
    relu_mean, relu_gradient = _tried(classifier.head, shape, name, nn.ReLU())
    ratio = gradient / max(relu_gradient, 1e-30)
    return Finding(
        "softmax", "error",
        f"head.layers.{name} is a {type(own).__name__} between the head's layers: its units are "
        f"{mean:.2g} on average (ReLU's {relu_mean:.2g}), and the gradient before it is "
        f"{ratio:.2g} times that with ReLU",
        "head.activation=relu",
        {"mean_activation": mean, "mean_activation_relu": relu_mean, "gradient_ratio": ratio},
    )  # fmt: skip


def _tried(
    head: Head, shape: tuple[int, ...], name: str, activation: nn.Module
) -> tuple[float, float]:
    """With `activation` in that place: its mean, and the length of the gradient before it.

    Features are drawn as those behind a ReLU are distributed: half a normal distribution.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(8, *shape, generator=generator).abs()
    layers = copy.deepcopy(head.layers).requires_grad_(True).eval()
    layers.set_submodule(name, copy.deepcopy(activation))
    seen: list[Tensor] = []
    place = layers.get_submodule(name)
    place.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    outputs = layers(head.pool(features))
    seen[0].retain_grad()
    classes = torch.arange(8) % max(outputs.shape[1], 2)
    loss = (
        F.binary_cross_entropy_with_logits(outputs[:, 0], classes.float())
        if outputs.shape[1] == 1
        else F.cross_entropy(outputs, classes)
    )
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = seen[0].grad
    return float(seen[1].detach().mean()), 0.0 if gradient is None else float(gradient.norm())


# ---------------------------------------------------------------- what learns


def everything_learns(case: Case) -> Iterator[Finding]:
    """Against each stage's optimizer, by identity: equal values are no proof."""
    for stage in case.job.config.stages:
        with trial(case.job.model.classifier, stage) as classifier:
            yield from _learns(case, stage, classifier)


def _learns(case: Case, stage: StageSpec, classifier: Classifier) -> Iterator[Finding]:
    """PyTorch refuses an optimizer without parameters, so that comes first."""
    held: Counter[int] = Counter()
    rates: dict[int, float] = {}
    if any(p.requires_grad for p in classifier.parameters()):
        for group in case.optimizer(stage, classifier).param_groups:
            held.update(map(id, group["params"]))
            rates |= dict.fromkeys(map(id, group["params"]), group["lr"])
    wanted = {n: p for n, p in classifier.named_parameters() if p.requires_grad}
    lost = [n for n, p in wanted.items() if held[id(p)] == 0 or rates[id(p)] == 0]
    twice = [n for n, p in wanted.items() if held[id(p)] > 1]
    numbers = {"learn": float(len(wanted)), "left_out": float(len(lost)), "twice": len(twice)}
    if len(lost) == len(wanted):
        yield Finding(
            "nothing_trains", "error",
            f"stage {stage.name}: no parameter changes. {len(wanted)} have requires_grad, and the "
            "optimizer has a rate above 0 for none of them",
            f"{config_key(stage)}.train_from=head", numbers,
        )  # fmt: skip
    elif lost or twice:
        does = "not in the optimizer, or at a rate of 0" if lost else "in the optimizer twice"
        names = [name.removeprefix("backbone.blocks.") for name in lost or twice]
        yield Finding(
            "not_in_optimizer", "error",
            f"stage {stage.name}: {len(names)} of {len(wanted)} parameters that should learn are "
            f"{does}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}",
            "build the optimizer as tlx.training.optim.build_optimizer does", numbers,
        )  # fmt: skip


# ---------------------------------------------------------------- stages


def random_head(case: Case) -> Iterator[Finding]:
    """A backbone that learns while the head sends it random gradients."""
    job = case.job
    stage, name = job.config.stages[0], job.config.backbone.weights
    if name is None or not _is_new(job.model.classifier):
        return
    with trial(job.model.classifier, stage) as classifier:
        if not any(p.requires_grad for p in classifier.backbone.parameters()):
            return
        rates = layer_group_rates(case.optimizer(stage, classifier))
    head = rates.pop(HEAD, 0.0)
    block = max(rates, key=lambda group: rates[group], default=None)
    if block is None or rates[block] <= GENTLE * head:
        return
    yield Finding(
        "early_unfreezing", "warning",
        f"stage {stage.name} is the first, so the head is random, and {len(rates)} pretrained "
        f"blocks already learn: {block} at {rates[block]:g}, the head at {head:g}. The head's "
        "first, random gradients spoil what the weights know",
        "stage=finetune", {"blocks": len(rates), "rate": rates[block], "head_rate": head},
    )  # fmt: skip


def _is_new(classifier: Classifier) -> bool:
    """PyTorch draws a Linear layer's weights within 1/√inputs; training takes some beyond."""
    linear = [m for m in classifier.head.modules() if isinstance(m, nn.Linear)]
    return all(m.weight.abs().max() * math.sqrt(m.in_features) <= 1.001 for m in linear)


def tiny_batches(case: Case) -> Iterator[Finding]:
    """BatchNorm that takes its statistics from a handful of images."""
    config, classifier = case.job.config, case.job.model.classifier
    processes = 1 if config.trainer.sync_batchnorm else process_count(config.trainer)
    images = config.data.batch_size // processes
    if images >= FEW:
        return
    for stage in config.stages:
        with trial(classifier, stage) as copied:
            adapting = [m for m in copied.modules() if isinstance(m, _BatchNorm) and m.training]
        if adapting:
            learning = "" if stage.batchnorm != "frozen" else "_learning"
            yield Finding(
                "batchnorm", "warning",
                f"stage {stage.name}: {len(adapting)} BatchNorm layers take mean and variance from "
                f"{images} images at a time; in evaluation they use running ones, so that "
                "training and evaluation are two different networks",
                f"{config_key(stage)}.batchnorm{learning}=frozen; or data.batch_size=32",
                {"images": images, "layers": len(adapting)},
            )  # fmt: skip
            return
