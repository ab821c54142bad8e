"""python -m tlx.predict: classes and probabilities for images."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tlx.commands import command, file_to_write, own_arguments
from tlx.errors import UserError

HELP = """\
tlx predict: the predicted class and the probability of every class, for images.

  python -m tlx.predict run=RUN images=DIR_OR_FILE [output=predictions.csv]

  run=RUN           a finished run's folder (or its model/ folder alone)
  images=…          one image, or a folder, searched with its subfolders
  output=FILE       the CSV to write (default: predictions.csv)
  batch_size=32     images at a time
  on_error=error    an unreadable image: error | skip (named)
  calibrated=false  true: probabilities by the temperature that was fitted on val
  tta=N             average over so many views (default: as many as the run's metrics)
"""

FEW = 10  # images, each of which is told on the screen


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own = own_arguments(
        arguments,
        {
            "run": None,
            "images": None,
            "output": "predictions.csv",
            "batch_size": "32",
            "on_error": "error",
            "calibrated": "false",
            "tta": "",
        },
    )
    if own["calibrated"] not in ("true", "false"):
        raise UserError(f"calibrated={own['calibrated']} is not valid; it takes true | false.")
    for name in ("batch_size", "tta"):
        if own[name] and not (own[name].isdecimal() and int(own[name])):
            raise UserError(f"{name}={own[name]}: give a whole number above 0.")
    if own["on_error"] not in ("error", "skip"):
        raise UserError(f"on_error={own['on_error']} is not valid; it takes error | skip.")
    run, output = Path(own["run"]), file_to_write(own["output"])
    import numpy as np

    from tlx.data.sources import find_images
    from tlx.evaluation.calibration import calibrated
    from tlx.evaluation.prediction_file import Predictions
    from tlx.evaluation.predictions import Compute, predict
    from tlx.models.folder import load_model
    from tlx.training.devices import choose_device

    model = load_model(run / "model" if (run / "model").is_dir() else run)
    if own["calibrated"] == "true" and model.temperature is None:
        raise UserError(f"{run}: no temperature was fitted on val; use calibrated=false.")
    views = replace(model.views, count=int(own["tta"] or model.views.count))
    root, files = find_images(Path(own["images"]), own["on_error"], model.preprocess.decoding)
    compute = Compute(choose_device("auto"), False, int(own["batch_size"]), views=views)
    probabilities = predict(model, files, compute)
    paths = [file.relative_to(root).as_posix() for file in files]
    decision = model.decision
    if own["calibrated"] == "true" and model.temperature is not None:
        probabilities = calibrated(probabilities, model.temperature)
        if decision is not None:  # the same images stay above it
            pair = np.array([[1 - decision.threshold, decision.threshold]])
            threshold = float(calibrated(pair, model.temperature)[0, 1])
            decision = replace(decision, threshold=threshold)
    predictions = Predictions(paths, None, probabilities, model.classes, decision)
    predictions.write(output)
    if len(files) <= FEW:
        for path, name, row in zip(paths, predictions.predicted, probabilities, strict=True):
            print(f"{path}: {name} ({row[model.classes.index(name)]:.3f})")
    counts = Counter(predictions.predicted)
    print(
        f"{len(files)} image{'s' * (len(files) != 1)}: "
        + ", ".join(f"{n} {name}" for name, n in counts.most_common())
    )
    print(f"Written to {own['output']}")


if __name__ == "__main__":
    main(sys.argv[1:])
