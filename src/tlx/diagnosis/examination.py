"""Checks carried out one by one: what they found, and what could not be examined and why."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from tlx.diagnosis.findings import Finding, as_json, ranked
from tlx.errors import UserError

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
