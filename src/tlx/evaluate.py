"""python -m tlx.evaluate: a finished run's metrics, again."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tlx.commands import command, own_arguments
from tlx.config import override, parse, saved_config
from tlx.errors import UserError

HELP = """\
tlx evaluate: metrics and predictions again, from a finished run.

  python -m tlx.evaluate run=RUN [split=test]

  run=RUN           a finished run's folder
  split=test        train | val | test
  data.root=DIR     where the images are now, if they were moved
"""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own = own_arguments(arguments, {"run": None, "split": "test", "data.root": ""})
    run, split = Path(own["run"]), own["split"]
    raw = saved_config(run)
    if own["data.root"]:
        raw = override(raw, {"data.root": own["data.root"]})
    config = parse(raw)

    from tlx.data.manifest import Manifest
    from tlx.data.sources import data_root
    from tlx.evaluation.predictions import Compute
    from tlx.evaluation.results import evaluate_samples, show
    from tlx.files import write_json
    from tlx.models.folder import load_model
    from tlx.training.devices import choose_device, choose_precision

    model = load_model(run / "model")
    root = data_root(config.data.source, Path(config.data.root) if config.data.root else None)
    samples = Manifest.read(run / "manifest.csv", root).split(split)
    if not samples:
        raise UserError(f"{run} has no {split} images; see split in its manifest.csv.")
    precision = choose_precision(config.trainer)
    device = choose_device(config.trainer.accelerator)
    compute = Compute(device, precision == "bf16-mixed", config.data.batch_size)
    output = run / "predictions" / f"{split}.csv"
    path = run / "metrics.json"
    metrics = json.loads(path.read_text("utf-8")) if path.exists() else {}
    metrics[split] = evaluate_samples(model, samples, root, output, compute)
    write_json(path, metrics)
    show({split: metrics[split]})


if __name__ == "__main__":
    main(sys.argv[1:])
