"""How to use the classifier and how to make it again."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from tlx.evaluation.finished import FinishedRun
from tlx.evaluation.shown import by
from tlx.models.preprocess import Preprocess

UNKNOWN = "not recorded"


def usage(run: FinishedRun) -> dict[str, Any]:
    place = shlex.quote(str(run.folder))
    return {
        "place": place,
        "predict": f"python -m tlx.predict run={place} images=FOLDER output=predictions.csv",
        "again": f"python -m tlx.evaluate run={place}\npython -m tlx.report run={place}",
        "classes": run.classes,
        "has_model": run.model is not None,
        "decision": run.model.decision if run.model is not None else None,
        "input": _input(run.model.preprocess) if run.model is not None else "",
    }


def _input(preprocess: Preprocess) -> str:
    size = by(preprocess.image_size, preprocess.image_size)
    if preprocess.resize == "squash":
        return f"scaled to {size} pixels"
    shorter = f"its shorter side scaled to {preprocess.resize_size} pixels"
    return f"taken with {shorter}, and of that the middle {size}"


def reproduction(run: FinishedRun) -> dict[str, Any]:
    config = run.folder / ".hydra" / "config.yaml"
    return {
        "command": shlex.join(["python", "-m", "tlx.train", *run.overrides]),
        "facts": {
            "weights": run.weights or UNKNOWN,
            "seed": str(run.raw.get("seed", UNKNOWN)),
            **_environment(run),
        },
        "config": config.read_text("utf-8", "replace"),
    }


def _environment(run: FinishedRun) -> dict[str, str]:
    """Versions and git state as the run noted them, each as one text."""
    noted = run.metrics.get("environment")
    if isinstance(noted, Mapping):
        return {str(name): _text(value) for name, value in noted.items()}
    description = run.folder / "model" / "model.json"
    known = json.loads(description.read_text("utf-8")) if description.is_file() else {}
    return {
        "tlx": str(known.get("tlx", UNKNOWN)),
        "versions of libraries, git state": UNKNOWN,
    }


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return UNKNOWN if value is None else str(value)
