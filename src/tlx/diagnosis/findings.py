"""What checks find: causes, ranked, each with its evidence; and what they could not examine."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from tlx.data.checks import TOLD_OF_DATA
from tlx.errors import UserError
from tlx.files import write_json

log = logging.getLogger(__name__)

Severity = Literal["error", "warning", "note"]
SEVERITIES = ("error", "warning", "note")

# What can be wrong, in the order in which one explains another: a cause before its symptoms.
CAUSES: Mapping[str, str] = {
    "weights_not_loaded": "the pretrained weights are not in the network",
    "input_mismatch": "the input is not what the weights were trained on",
    "leak": "the same pictures to train on and to test with",
    "wrong_rows": "predictions matched with the wrong images",
    "class_order": "the classes are numbered differently in the splits",
    "class_missing": "a split lacks a class",
    "label_conflict": "one picture with several labels",
    "shuffled_labels": "the labels do not belong to the images",
    "augmented_evaluation": "validation or test images are augmented",
    "nothing_trains": "nothing learns",
    "not_in_optimizer": "a parameter that should learn is not in the optimizer",
    "softmax": "a softmax or sigmoid where none belongs",
    "not_finite": "NaN or infinite values",
    "learning_rate": "a learning rate far too high or too low",
    "early_unfreezing": "the backbone learns while the head is still random",
    "frozen_moved": "a frozen block moved",
    "batchnorm": "BatchNorm adapts to tiny batches",
    "dead_units": "units that are always 0",
    "gradients": "gradients vanish or explode",
    "cannot_fit": "the network cannot fit one batch",
    "strong_augmentation": "augmentation hides the class",
    "small_images": "images far smaller than the input",
    "one_class": "one class is predicted for everything",
    "overfitting": "the network learns the training images by heart",
    "still_improving": "training ended while it still helped",
    "few_images": "too few images for the claim",
}


@dataclass(frozen=True)
class Finding:
    """`evidence` is a sentence with its numbers, which `numbers` repeats by name.

    `fix` is an override to paste where there is one. An error makes the result wrong or learning
    impossible; a warning makes it worse; a note is worth knowing.
    """

    cause: str
    severity: Severity
    evidence: str
    fix: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    picture: str | None = None  # a PNG's path

    def __post_init__(self) -> None:
        if self.cause not in CAUSES:
            raise ValueError(f"{self.cause!r} is not in CAUSES")

    @property
    def page(self) -> str:
        """Where the documentation explains it."""
        return f"docs/doctor.md#{self.cause.replace('_', '-')}"


def ranked(findings: Iterable[Finding]) -> list[Finding]:
    """The likeliest cause of bad results first: by severity, then causes before symptoms."""
    return sorted(findings, key=lambda finding: _rank(finding.severity, finding.cause))


def _rank(severity: str, cause: str) -> tuple[int, int]:
    return SEVERITIES.index(severity), list(CAUSES).index(cause)


def as_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    return [
        asdict(f) | {"title": CAUSES[f.cause], "numbers": dict(f.numbers), "page": f.page}
        for f in findings
    ]


def tell(run: Path, findings: Sequence[Finding]) -> None:
    """Into the log and, under `doctor`, into the run's findings.json.

    Of a cause that an earlier examination found only the later word stays.
    """
    path = run / "findings.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    before = {f["cause"]: f for f in known.get("doctor", [])}
    for finding in findings:
        said = before.pop(finding.cause, None)
        if finding.severity != "note" and finding.cause not in TOLD_OF_DATA and said is None:
            log.warning("%s: %s (%s)", finding.cause, finding.evidence, finding.fix)
    found = [*before.values(), *as_json(findings)]
    found.sort(key=lambda f: _rank(f["severity"], f["cause"]))
    write_json(path, known | {"doctor": found})


T = TypeVar("T")


@dataclass(frozen=True)
class NotExamined:
    what: str
    why: str


@dataclass(frozen=True)
class Examination:
    """`findings` are ranked; `examined` are the checks by name."""

    findings: tuple[Finding, ...]
    examined: tuple[str, ...]
    not_examined: tuple[NotExamined, ...]

    @property
    def has_error(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "findings": as_json(self.findings),
            "examined": list(self.examined),
            "not_examined": [{"what": n.what, "why": n.why} for n in self.not_examined],
        }


def carry_out(checks: Sequence[Callable[[T], Iterator[Finding]]], case: T) -> Examination:
    """Every check on its own: one that fails, for whatever reason, does not end the others.

    A check raises UserError where what it needs is not there.
    """
    findings: list[Finding] = []
    examined: list[str] = []
    failed: list[NotExamined] = []
    for check in checks:
        name = check.__name__.replace("_", " ").strip()
        try:
            findings += check(case)
        except Exception as error:  # a doctor that dies of an illness is none
            failed.append(NotExamined(name, _why(error)))
        else:
            examined.append(name)
    return Examination(tuple(ranked(findings)), tuple(examined), tuple(failed))


def _why(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error):
        return "there is not enough memory; quick=true needs less"
    return f"{type(error).__name__}: {error}"
