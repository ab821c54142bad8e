"""What every peer's script shares: the recipe's numbers, the clock, and the line it ends with.

Only the standard library: the scripts run in environments of their own.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

STARTED = time.perf_counter()  # before the heavy imports, which count

SIZE, BATCH, HIDDEN, DROPOUT = 150, 20, 256, 0.5
HEAD_RATE, TOP_RATE, RHO, EPSILON = 1e-4, 1e-5, 0.9, 1e-7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)  # train/ and val/, class folders each
    parser.add_argument("--weights", type=Path, required=True)  # torchvision's VGG16, features.*
    parser.add_argument("--steps", type=int, required=True)  # an epoch
    parser.add_argument("--head-epochs", type=int, required=True)
    parser.add_argument("--top-epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--everything", action="store_true")  # learns after the head, not block5
    parser.add_argument("--uncached", action="store_true")  # tlx on images, an epoch of --steps
    parser.add_argument("--default", action="store_true")  # tlx as it comes, not the recipe
    return parser.parse_args()


class Clock:
    """The moments at which steps ended, by phase; what is between phases is not a step."""

    def __init__(self) -> None:
        self.ends: dict[str, list[list[float]]] = {"head": [], "top": []}
        self.val: list[float] = []

    def epoch(self, phase: str) -> None:
        self.ends[phase].append([])

    def step(self, phase: str) -> None:
        self.ends[phase][-1].append(time.perf_counter())

    def median(self, phase: str) -> float:
        """Seconds from the end of a step to the end of the next in its epoch."""
        pairs = (itertools.pairwise(e) for e in self.ends[phase])
        return statistics.median(b - a for epoch in pairs for a, b in epoch)

    def report(self, right: int, images: int) -> None:
        """One line for compare.py: seconds, and how many val images came out right."""
        steps = {phase: self.median(phase) for phase in self.ends}
        taken = time.perf_counter() - STARTED
        counts = {phase: sum(map(len, epochs)) for phase, epochs in self.ends.items()}
        val = statistics.median(self.val)
        known = sum(counts[p] * steps[p] for p in steps) + sum(self.val)
        print(json.dumps({
            "head_step": steps["head"], "top_step": steps["top"], "val": val,
            "once": max(0.0, taken - known), "seconds": taken, "right": right, "images": images,
        }))  # fmt: skip
