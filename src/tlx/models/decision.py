"""How a class follows from probabilities: the likeliest, or the positive one above a threshold."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlx.errors import UserError, unknown

if TYPE_CHECKING:  # `config` reads the aim before anything slow is imported
    import numpy as np
    from numpy.typing import NDArray

AIM = re.compile(r"(f1|youden)|(recall|precision):(\d*\.?\d+)")


@dataclass(frozen=True)
class Aim:
    """What a threshold is to reach on val; `level` (a fraction) is for recall and precision."""

    name: str  # f1 | youden | recall | precision
    level: float = 0.0


@dataclass(frozen=True)
class Decision:
    """`positive` (a class's index, of two) is predicted from a probability of `threshold` on.

    `reached` is what that has on val of what it aims at: recall, precision, F1 or Youden's index.
    """

    positive: int
    threshold: float
    aim: str
    reached: float | None = None  # None: val had one class only

    @property
    def missed(self) -> bool:
        return self.reached is not None and self.reached < parse_aim(self.aim).level


def parse_aim(text: str) -> Aim:
    """The setting `threshold`; raises when it is none of the four forms."""
    found = AIM.fullmatch(text.strip())
    if found is None or (found[3] and not 0 < float(found[3]) <= 1):
        raise UserError(
            f"threshold={text} is not valid; it takes f1 | youden | recall:X | precision:X with "
            "X, what is to be reached at least, above 0 and at most 1, such as recall:0.95."
        )
    return Aim(found[1]) if found[1] else Aim(found[2], float(found[3]))


def positive_class(positive: str | None, classes: tuple[str, ...]) -> int:
    """The index of the class a threshold is for; raises for other than two classes."""
    if len(classes) != 2:
        raise UserError(
            f"threshold and positive are for 2 classes, not {len(classes)}; leave them at null."
        )
    if positive is None:
        return 1
    if positive not in classes:
        raise unknown("positive class", positive, classes)
    return classes.index(positive)


def decide(probabilities: "NDArray[np.float64]", decision: Decision | None) -> "NDArray[np.int64]":
    """The predicted class's index for every row of (n, classes) probabilities."""
    import numpy as np

    if decision is None:
        return np.asarray(probabilities.argmax(axis=1), dtype=np.int64)
    chosen = probabilities[:, decision.positive] >= decision.threshold
    return np.where(chosen, decision.positive, 1 - decision.positive)
