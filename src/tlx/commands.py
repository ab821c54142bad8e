"""How every command reads its arguments and ends on an error."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from tlx.errors import UserError, unknown

P = ParamSpec("P")
T = TypeVar("T")


def command(help_text: str | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Print `help_text` on --help; print a UserError without a traceback and exit with 2."""

    def decorate(main: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if help_text is not None and {"-h", "--help"} & set(args[0]):  # type: ignore[call-overload]
                print(help_text, end="")
                sys.exit(0)
            try:
                return main(*args, **kwargs)
            except UserError as error:
                print(f"tlx: {error}", file=sys.stderr)
                sys.exit(2)
            except KeyboardInterrupt:
                print("Stopped.", file=sys.stderr)
                sys.exit(130)

        return run

    return decorate


def split_arguments(
    arguments: Sequence[str], own: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The command's own KEY=VALUE arguments, over their defaults, and all the others."""
    values, others = dict(own), []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if separator and key in own:
            values[key] = value
        else:
            others.append(argument)
    return values, others


def own_arguments(arguments: Sequence[str], own: Mapping[str, str | None]) -> dict[str, str]:
    """KEY=VALUE arguments of a command that takes no others; None marks one that must be given."""
    values, others = split_arguments(arguments, {k: v or "" for k, v in own.items()})
    for argument in others:
        raise unknown("argument", argument.partition("=")[0], own)
    for key, default in own.items():
        if default is None and not values[key]:
            raise UserError(f"{key} is not given; add {key}=… to the command.")
    return values
