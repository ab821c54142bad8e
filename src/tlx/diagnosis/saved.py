"""What a run saved: weights, finite and frozen where they should be; classes; the input."""

import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tlx.diagnosis.findings import Finding
from tlx.diagnosis.run_folder import RunFolder, tensors
from tlx.diagnosis.trial import config_key, lower_rate
from tlx.errors import UserError
from tlx.models.folder import build_classifier
from tlx.models.preprocess import Preprocess
from tlx.models.weights import resolve_weights, weights_member
from tlx.specs import StageSpec
from tlx.training.plan import architecture, preprocessing
from tlx.training.unfreezing import apply_stage


def saved_weights(run: RunFolder) -> Iterator[Finding]:
    """NaN or infinity among them: the first file and, in the network's order, the first tensor."""
    names = [stage.name for stage in run.stages]
    files = [run.folder / "checkpoints" / n / f for n in names
             for f in ("weights.safetensors", "last.ckpt")]  # fmt: skip
    files = [f for f in (*files, run.folder / "model/model.safetensors") if f.is_file()]
    if not files:
        raise UserError("there are no saved weights: the run did not end an epoch")
    order = list(run.empty_classifier.state_dict())
    for path in files:
        bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors(path)}
        bad = {name.removeprefix("classifier."): count for name, count in bad.items() if count}
        if bad:
            first = min(bad, key=lambda name: order.index(name) if name in order else len(order))
            place = path.relative_to(run.folder)
            stage = next((s for s in run.stages if s.name == path.parent.name), run.stages[-1])
            yield Finding(
                "not_finite", "error",
                f"{place}: {len(bad)} tensors hold NaN or infinity, in the network's order first "
                f"{first} ({bad[first]} values)",
                f"{lower_rate(stage)}, trainer.clip=1.0 or trainer.precision=32",
                {"tensors": len(bad), "values": sum(bad.values())},
            )  # fmt: skip
            return


def frozen_blocks(run: RunFolder) -> Iterator[Finding]:
    """Bit by bit: what a stage froze against what it began with."""
    begun = [stage for stage in run.stages if run.weights(stage).is_file()]
    if not begun:
        raise UserError("there are no checkpoints: the run did not end an epoch")
    before: Path | None = None
    for stage in begun:
        after = run.weights(stage)
        frozen = _frozen(run, stage)
        if frozen and (before is not None or run.config.backbone.weights is not None):
            start = dict(tensors(before)) if before is not None else _pretrained(run)
            yield from _moved(run, stage, frozen, start, after)
        before = after


def _frozen(run: RunFolder, stage: StageSpec) -> list[str]:
    """The tensors that the stage must not move, by their names in the state."""
    classifier = run.empty_classifier
    apply_stage(classifier, stage)
    names = []
    for path, module in classifier.named_modules():
        names += [f"{path}.{n}" for n, p in module.named_parameters(recurse=False)
                  if not p.requires_grad]  # fmt: skip
        if not module.training:
            names += [f"{path}.{n}" for n, _ in module.named_buffers(recurse=False)]
    kept = classifier.state_dict()
    return [name for name in kept if name in set(names)]


def _pretrained(run: RunFolder) -> dict[str, Tensor]:
    spec = run.config.backbone
    found = resolve_weights(spec.name, spec.weights, classifier=spec.classifier)
    preprocess = preprocessing(run.config, found.enum if found else None)
    design = architecture(run.config, len(run.manifest.classes), preprocess)
    with torch.random.fork_rng(devices=[]):
        return build_classifier(design, found.state_dict if found else None).state_dict()


def _moved(
    run: RunFolder, stage: StageSpec, frozen: list[str], start: dict[str, Tensor], after: Path
) -> Iterator[Finding]:
    moved: dict[str, float] = {}
    ends = dict(tensors(after))
    for name in frozen:
        if not torch.equal(start[name], ends[name]):
            moved[name] = float((start[name].double() - ends[name].double()).abs().max())
    if not moved:
        return
    first, most = next(iter(moved)), max(moved, key=lambda name: moved[name])
    buffers = all(name.endswith(("running_mean", "running_var", "tracked")) for name in moved)
    fix = f"{config_key(stage)}.batchnorm=frozen, and train again" if buffers else (
        "train again; weights that were changed by hand or by another program have no way back"
    )  # fmt: skip
    yield Finding(
        "frozen_moved", "error",
        f"stage {stage.name} froze what is before {stage.train_from}, but {len(moved)} of "
        f"{len(frozen)} frozen tensors moved: first {_short(first)}, furthest {_short(most)} by "
        f"{moved[most]:.2g}",
        fix,
        {"tensors": len(moved), "frozen": len(frozen), "largest": moved[most]},
    )  # fmt: skip


def _short(name: str) -> str:
    return name.removeprefix("backbone.blocks.")


def class_order(run: RunFolder) -> Iterator[Finding]:
    """The model, the manifest and the files of predictions number the classes alike."""
    wanted = run.manifest.classes
    sources: dict[str, tuple[str, ...]] = {}
    if (run.folder / "model" / "model.json").is_file():
        sources["model/model.json"] = tuple(run.description["classes"])
    for split in run.splits:
        name = f"predictions/{split}.csv"
        with (run.folder / name).open(encoding="utf-8", errors="surrogateescape") as file:
            sources[name] = tuple(next(csv.reader(file), ())[3:])
    if not sources:
        raise UserError("there is neither a model nor a file of predictions")
    for name, classes in sources.items():
        if classes != wanted:
            yield Finding(
                "class_order",
                "error",
                f"{name} has the classes in the order {', '.join(classes)}; by manifest.csv it is "
                f"{', '.join(wanted)}",
                "put back the run's own manifest.csv and model"
                if name.startswith("model")
                else f"python -m tlx.evaluate run={run.place} split={Path(name).stem}, if the "
                "manifest is the run's own",
            )


def input_of_the_model(run: RunFolder) -> Iterator[Finding]:
    """What model.json says a network gets, against what its weights were trained on."""
    spec = run.config.backbone
    if spec.weights is None:
        return
    saved = Preprocess.from_dict(dict(run.description["preprocess"]))
    own = Preprocess.for_weights(spec.name, weights_member(spec.name, spec.weights))
    if not saved.same_input(own):
        yield Finding(
            "input_mismatch",
            "error",
            f"the network gets {saved.describe_input()}; its weights were trained on "
            f"{own.describe_input()}",
            "preprocess.input=weights, and train again",
        )
