"""What the stages of a run share: made once, before the first of them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from tlx.data.checks import find_problems, write_findings
from tlx.data.images import UnreadableImage
from tlx.data.manifest import Manifest
from tlx.data.scan import scan
from tlx.data.sources import kept_manifest, list_records
from tlx.errors import UserError
from tlx.files import locked
from tlx.models.decision import positive_class
from tlx.models.folder import Architecture, SavedModel, build_classifier
from tlx.models.preprocess import Preprocess
from tlx.models.weights import resolve_weights
from tlx.specs import Config
from tlx.training.devices import choose_precision, is_launched, keep_freed_memory, process_count
from tlx.training.drift import Statistics, statistics
from tlx.training.l2_sp import pretrained_weights
from tlx.training.plan import architecture, preprocessing, read_manifest
from tlx.training.unfreezing import plain_stages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What the stages share, and what evaluation needs of them."""

    config: Config
    folder: Path
    manifest: Manifest
    model: SavedModel
    architecture: Architecture
    precision: str
    statistics: Statistics  # BatchNorm's, before the first stage
    pretrained: Mapping[str, Tensor]  # what L2-SP holds the backbone to; empty without it

    @property
    def is_first_process(self) -> bool:
        return is_first_process()


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep the run's folder to this process (and the ones it starts) until the run is over."""
    if not is_first_process():
        yield
        return
    with locked(folder / ".lock", f"another process is training the run in {folder}."):
        yield


def is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def prepare(config: Config, folder: Path) -> Job:
    """Weights, images and the network with its new head; `folder` gets the manifest."""
    if not is_first_process():
        logging.getLogger("tlx").setLevel(logging.WARNING)
    keep_freed_memory()
    if not (folder / "checkpoints").exists():
        _forget_measurements(config, folder)
    weights = resolve_weights(
        config.backbone.name, config.backbone.weights, classifier=config.backbone.classifier
    )
    manifest = _manifest(config, folder)
    if not manifest.split("val"):
        raise UserError("no val images: the best epoch is chosen on them; set data.val above 0.")
    if len(manifest.split("val")) < (count := process_count(config.trainer)):
        raise UserError(
            f"{len(manifest.split('val'))} val images are too few for {count} processes; raise "
            "data.val, or use fewer trainer.devices."
        )
    batches = -(-len(manifest.split("train")) // config.data.batch_size)
    batches = min(batches, config.trainer.limit_train or batches)
    if config.trainer.accumulate > batches:  # so many never come together
        raise UserError(
            f"trainer.accumulate={config.trainer.accumulate} is more than the {batches} batches of "
            f"an epoch; give {batches} or less, or a smaller data.batch_size."
        )
    if config.threshold is not None or config.positive is not None:
        positive_class(config.positive, manifest.classes)  # raises for another, or several classes
    preprocess = preprocessing(config, weights.enum if weights else None)
    if is_first_process() and not (folder / "checkpoints").exists():
        listed = [record.path for record in list_records(config.data, manifest.root)]
        _tell_problems(manifest, listed, preprocess, folder)
    design = architecture(config, len(manifest.classes), preprocess)
    torch.manual_seed(config.seed)
    classifier = build_classifier(design, weights.state_dict if weights else None)
    config = replace(config, stages=plain_stages(classifier, config.stages))
    if classifier.backbone.is_convolutional:
        classifier.to(memory_format=torch.channels_last)
    model = SavedModel(classifier, preprocess, manifest.classes)
    is_held = any(stage.l2_sp is not None for stage in config.stages)
    pretrained = pretrained_weights(classifier) if is_held else {}
    precision = choose_precision(config.trainer, folder)
    return Job(
        config, folder, manifest, model, design, precision, statistics(classifier), pretrained
    )


def _forget_measurements(config: Config, folder: Path) -> None:
    """Those of a run that was killed before it had trained: the next may have other settings.

    They stay where other processes, which look for them, may be further than this one.
    """
    if is_first_process() and not (process_count(config.trainer) > 1 and is_launched()):
        for name in ("precision.json", "cache.json"):
            (folder / name).unlink(missing_ok=True)


def _manifest(config: Config, folder: Path) -> Manifest:
    """A begun run's own, if its files are still the same; else a new one, which it keeps."""
    path = folder / "manifest.csv"
    if path.exists() and (folder / "checkpoints").exists():
        return kept_manifest(path, config.data)
    manifest = read_manifest(config)
    if is_first_process():
        manifest.write(path)
    return manifest


def _tell_problems(
    manifest: Manifest, listed: Sequence[str], preprocess: Preprocess, folder: Path
) -> None:
    """What is odd about the images, those not read among them: all of it into the run's folder,
    the worst into the log."""
    known = {sample.path for sample in manifest.samples}
    found = scan(manifest.root, listed, preprocess.decoding)
    scanned = {p: s for p, s in found.items() if p in known or isinstance(s, UnreadableImage)}
    findings = find_problems(manifest.samples, scanned, image_size=preprocess.image_size)
    write_findings(folder / "findings.json", findings)
    for finding in findings:
        if finding.severity != "note":
            log.warning("%s: %s (%s)", finding.severity, finding.message, finding.fix)
