"""The one error a user's mistake raises, and the words that help to mend it."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can mend. Commands print it without a traceback and exit with 2."""


# what a choice is called that switches something
SWITCHES = {"true": ("on",), "yes": ("on",)} | dict.fromkeys(("false", "no"), ("off", "none"))


def unknown(kind: str, value: object, valid: Iterable[str]) -> UserError:
    """The error for a name that is not among the valid ones; the nearest come first."""
    names, text = list(valid), str(value)
    meant = SWITCHES.get(text.casefold(), ())
    near = [name for name in names if _bare(name) == _bare(text) or name in meant]
    near = near or get_close_matches(text, names, n=3, cutoff=0.5)
    near = near or get_close_matches(text.casefold(), names, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listed = ", ".join(names[:100])
    return UserError(f"unknown {kind} {text!r}.{hint} Valid: {listed}.")


def _bare(name: str) -> str:
    """As in VGG16, ResNet-50."""
    return re.sub(r"[-_ ]", "", name.casefold())
