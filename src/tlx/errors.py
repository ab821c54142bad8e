"""The one error a user's mistake raises, and the words that help to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend. Commands print it without a traceback and exit with 2."""


def unknown(kind: str, value: object, valid: Iterable[str]) -> UserError:
    """The error for a name that is not among the valid ones; the nearest come first."""
    names = list(valid)
    near = get_close_matches(str(value), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listed = ", ".join(names[:100])
    return UserError(f"unknown {kind} {str(value)!r}.{hint} Valid: {listed}.")
