"""How a run learned, read back from its TensorBoard events."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Series = tuple[NDArray[np.int64], NDArray[np.float64]]  # optimizer steps, values


@dataclass(frozen=True)
class History:
    """`series` by TensorBoard's tag; `stages` are (name, its first step), in order."""

    series: dict[str, Series] = field(default_factory=dict)
    stages: tuple[tuple[str, int], ...] = ()

    def epochs(self, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Steps as epochs since the run's beginning; train/loss has one value per epoch."""
        ends, _ = self.series["train/loss"]
        return np.asarray(np.interp(steps, [0, *ends], np.arange(len(ends) + 1.0)))

    def last(self, prefix: str) -> dict[str, float]:
        """The last value of each tag that begins with `prefix`, by the rest of the tag."""
        found = {t.removeprefix(prefix): v for t, v in self.series.items() if t.startswith(prefix)}
        return {name: float(values[-1]) for name, (_, values) in found.items()}


def read_history(run: Path) -> History:
    """Empty when the run has no events."""
    if not any(run.glob("events.out.tfevents.*")):
        return History()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every file it opens
    from tensorboard.backend.event_processing import event_accumulator  # type: ignore[import-untyped]

    # all scalars and texts; of images and the rest, which can be large, one
    guidance = {"scalars": 0, "tensors": 0, "images": 1, "histograms": 1, "compressedHistograms": 1}
    events: Any = event_accumulator.EventAccumulator(str(run), size_guidance=guidance)
    events.Reload()
    tags = events.Tags()
    series = {tag: _series(events.Scalars(tag)) for tag in tags["scalars"]}
    text = "stage/text_summary"
    notes = events.Tensors(text) if text in tags["tensors"] else []
    stages = tuple((_stage_name(note.tensor_proto.string_val[0]), note.step) for note in notes)
    return History(series, stages)


def _series(events: Sequence[Any]) -> Series:
    """Of a step that was logged twice, as on a resume, the later value."""
    last = {event.step: event.value for event in events}
    steps = sorted(last)
    return np.array(steps, dtype=np.int64), np.array([last[step] for step in steps])


def _stage_name(note: bytes) -> str:
    found = re.match(r"\*\*(.+?)\*\*", note.decode("utf-8", "replace"))
    return found[1] if found else "stage"


def smooth(values: NDArray[np.float64], factor: float = 0.8) -> NDArray[np.float64]:
    """Exponentially: each is the one before it × `factor` + the value × (1 − `factor`)."""
    smoothed = values.astype(np.float64).copy()
    for i in range(1, len(smoothed)):
        smoothed[i] = smoothed[i - 1] * factor + values[i] * (1 - factor)
    return smoothed
