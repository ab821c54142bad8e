"""What people type as KEY=VALUE, against what Hydra's grammar makes of it. Text alone."""

import os
import re
from contextlib import suppress
from typing import Any

from tlx.errors import UserError

# settings that are paths, which Hydra's grammar does not take whole
PATHS = (
    "data.root", "data.table", "data.exclude", "backbone.weights", "cache.dir", "hydra.run.dir",
    "hydra.sweep.dir",
)  # fmt: skip
NAMINGS = ("data.class_weights", "data.columns")  # mappings with names that users' data have
ODD = r"[^\w /\\.+:@%*?|$-]"  # what Hydra reads otherwise in a text
PART = (  # what commas outside quotes and brackets divide
    r"(?:(?<!\w)'(?:\\'|[^'])*'|(?<!\w)\"[^\"]*\"|\{[^{}]*\}|\[[^\[\]]*\]|\([^()]*\)|[^,])+"
)
SWEEPS = re.compile(r"(choice|glob|interval|range|shuffle|sort|tag)\(")  # Hydra's functions


def as_typed(path: str) -> str:
    """Without the quotes that Hydra takes off, and the ~ that the shell leaves."""
    return os.path.expanduser(_unquoted(path))


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if is_quoted else text


def in_quotes(text: str) -> str:
    """As Hydra reads them: a quote takes a backslash, and each backslash before a quote another."""
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", r"\'"), text)
    return f"'{escaped}'"


def is_misread(text: str) -> bool:
    return _unquoted(text) == text and bool(re.search(ODD, text, re.ASCII) or _is_no_text(text))


def _is_no_text(text: str) -> bool:
    return bool(re.fullmatch(r"[-+.\d_]*(e[-+\d_]+|inf|nan)?|true|false", text, re.IGNORECASE))


def is_no_choice(text: str) -> bool:
    return text.casefold() == "null" or _is_no_text(text)


def is_mapping(text: str) -> bool:
    return text.strip().startswith("{")


def mapping(key: str, text: str) -> dict[str, Any]:
    """Of `{CLASS: NUMBER}` or `{COLUMN: NAME}`, where names may have any letters."""
    if not text.endswith("}"):
        raise UserError(f"{key}={text} lacks the }} at its end.")
    pairs: dict[str, Any] = {}
    for part in re.findall(PART, text.strip()[1:-1]):
        is_column = key == "data.columns"
        name, colon, value = part.partition(":") if is_column else part.rpartition(":")
        if not colon:
            raise UserError(
                f"{key}={text}: {part.strip()} is no NAME: VALUE. A name with , or : takes quotes."
            )
        name, value = _unquoted(name.strip()), value.strip()
        pairs[name] = _unquoted(value) if is_column else _number(value)
    return pairs


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def is_swept(value: str) -> bool:
    """Whether it names several values: a comma outside quotes and brackets, or choice(…)."""
    bare = re.sub(r"'(\\'|[^'])*'|\"[^\"]*\"|\{[^{}]*\}|\[[^\[\]]*\]", "", value)
    return bool(re.search(r"[,(]", bare))


def unreadable(override: str, said: str) -> UserError:
    """Of what Hydra's grammar does not take; `said` is what Hydra says of it."""
    key, _, value = override.partition("=")
    if SWEEPS.match(value):
        line = said.splitlines()[-2]
        return UserError(f"{override}: {re.sub(r'.* while evaluating', 'cannot read', line)}.")
    is_nested = value[:1] in ("{", "[")
    known = ODD.replace("[^", r"[^{}\[\],") if is_nested else ODD
    found = re.search(known, value, re.ASCII)
    if not is_nested:
        what = f"a value with {found[0]}" if found else "it"
        fix = f'takes quotes: "{key}={in_quotes(value)}"'
    elif found:
        what = f"a value with {found[0]}"
        fix = "takes quotes, \"{NAME: 'VALUE'}\"; NAME has a to z, digits, _ and - alone"
    else:
        what, fix = "brackets and quotes", "come in pairs"
    return UserError(f"{override}: {what} {fix}.")


def several(override: str) -> UserError:
    key, _, value = override.partition("=")
    if SWEEPS.match(value):
        return UserError(f"{override} is a sweep: add -m for a run with each value.")
    bare = value.replace("'", "")
    is_number = all(_is_no_text(part) for part in value.split(","))
    one = "one number" if is_number else f"one (if it has commas, in quotes: \"{key}='{bare}'\")"
    return UserError(
        f"{key}={bare} has several values. Give {one}, or a list in brackets, '{key}=[{bare}]', "
        "where it takes one, or -m for a run with each."
    )
