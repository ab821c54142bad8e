"""python -m tlx.evaluate: a run's metrics, again, or what an interruption left undone."""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tlx.commands import command, own_arguments, run_folder
from tlx.composition import override, saved_config
from tlx.config import parse
from tlx.errors import UserError, unknown
from tlx.specs import Config

HELP = """\
tlx evaluate: metrics and predictions again, from a finished run.

  python -m tlx.evaluate run=RUN [split=test]

  run=RUN           a run's folder; one that was interrupted after training is made whole
  split=test        train | val | test | all
  data.root=DIR     where the images are now, if they were moved
"""
SPLITS = ("train", "val", "test", "all")


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own = own_arguments(arguments, {"run": None, "split": "test", "data.root": ""})
    split = own["split"]
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    run = run_folder(own["run"], write=True)
    raw = saved_config(run)
    if own["data.root"]:
        raw = override(raw, {"data.root": own["data.root"]})
    config = parse(raw)
    if not (run / "metrics.json").is_file():
        _complete(config, run, with_test=split in ("test", "all") or config.test is True)
        if split in ("val", "test"):
            return
    _evaluate(config, run, split)


def _evaluate(config: Config, run: Path, split: str) -> None:
    from tlx.data.sources import kept_manifest
    from tlx.evaluation.results import compute_of, probabilities_of, settings_of, write_split
    from tlx.evaluation.tables import show
    from tlx.files import write_json
    from tlx.models.folder import load_model
    from tlx.training.devices import choose_precision

    model = load_model(run / "model")
    manifest = kept_manifest(run / "manifest.csv", config.data)
    if manifest.classes != model.classes:
        raise UserError(
            f"the classes of {run / 'manifest.csv'} are not those of the model, in its order: "
            f"{', '.join(manifest.classes)}; {', '.join(model.classes)}."
        )
    samples = manifest.samples if split == "all" else manifest.split(split)
    if not samples:
        raise UserError(f"{run} has no {split} images; see split in its manifest.csv.")
    compute = compute_of(config, choose_precision(config.trainer, run))
    probabilities = probabilities_of(model, samples, manifest.root, compute)
    scores = write_split(run, split, model, samples, probabilities, positive=config.positive)
    path = run / "metrics.json"
    metrics = json.loads(path.read_text("utf-8"))  # now: another may have written in the meantime
    metrics[split] = scores
    write_json(path, metrics)
    show({split: metrics[split], **settings_of(model)})
    if split in ("val", "test"):
        from tlx.evaluation.board import write_board
        from tlx.evaluation.report import write_report

        write_board(run, config, manifest, model.preprocess, pictures=True)
        print(f"The report is in {write_report(run, gradcam=True, data_root=manifest.root)}")


def _complete(config: Config, run: Path, *, with_test: bool) -> None:
    """What training does after its last stage, from that stage's weights."""
    if not any((run / "checkpoints").glob("*/done.json")):
        raise UserError(f"{run} has no trained stage; python -m tlx.train resume={run} trains it.")
    from tlx.conclusion import conclude
    from tlx.training.job import hold, prepare
    from tlx.training.run import train_stages

    with hold(run):
        job = prepare(config, run)
        names = [stage.name for stage in job.config.stages]
        missing = [n for n in names if not (run / "checkpoints" / n / "done.json").exists()]
        if missing:
            raise UserError(
                f"{run} was interrupted in training: {', '.join(missing)} is not done. "
                f"python -m tlx.train resume={run} goes on."
            )
        stages = train_stages(job)  # all are done: this reads their weights
        started = time.monotonic() - sum(stage.seconds for stage in stages)
        if job.is_first_process:
            conclude(job, stages, started=started, with_test=with_test, report="full")


if __name__ == "__main__":
    main(sys.argv[1:])
