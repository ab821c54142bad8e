"""How every command reads its arguments and ends on an error."""

import errno
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import ParamSpec, TypeVar

from tlx.errors import UserError, unknown

P = ParamSpec("P")
T = TypeVar("T")

# what the machine refuses, which is no fault of tlx's
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def command(help_text: str | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Print `help_text` on --help; print a UserError without a traceback and exit with 2.

    So too where the machine refuses to read or write a file. What reads the output may stop before
    its end, as `head` does: that ends the command without a word.
    """

    def decorate(main: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
                sys.stdout.reconfigure(errors="backslashreplace")  # file names may be no UTF-8
            try:
                try:
                    if help_text is not None and {"-h", "--help"} & set(args[0]):  # type: ignore[call-overload]
                        print(help_text, end="")
                        sys.exit(0)
                    return main(*args, **kwargs)
                finally:  # not when Python ends, which would tell of a reader that is gone
                    print(end="", flush=True)
            except UserError as error:
                print(f"tlx: {error}", file=sys.stderr)
                sys.exit(2)
            except BrokenPipeError:
                if _is_output_read():
                    raise
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(141)  # as the shell has it for SIGPIPE
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                print(f"tlx: {error.filename or 'a file'}: {error.strerror}.", file=sys.stderr)
                sys.exit(2)
            except KeyboardInterrupt:
                print("Stopped.", file=sys.stderr)
                sys.exit(130)

        return run

    return decorate


def _is_output_read() -> bool:
    try:
        print(flush=True)
    except BrokenPipeError:
        return False
    return True


def split_arguments(
    arguments: Sequence[str], own: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The command's own KEY=VALUE arguments, over their defaults, and all the others.

    A shell leaves the ~ of KEY=~/… alone.
    """
    values, others = dict(own), []
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if separator and key in own:
            values[key] = os.path.expanduser(value)
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


def file_to_write(value: str) -> Path:
    """Of output=FILE. Raises UserError where no file can be, before anything slow has run."""
    path = Path(value).resolve()  # what a link leads to
    if (Path(value).exists() and not Path(value).is_file()) or not path.parent.is_dir():
        raise UserError(f"output={value} cannot be written: give a file in a folder that exists.")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"output={value} cannot be written: {path.parent} is read-only.")
    return path


def run_folder(value: str, *, write: bool = False) -> Path:
    """Of run=RUN. Raises UserError for a folder that is no run's or, to `write`, read-only."""
    run = Path(value)
    if not (run / ".hydra" / "config.yaml").is_file():
        raise UserError(f"run={run} is no run's folder: it has no .hydra/config.yaml.")
    if write and not os.access(run, os.W_OK):
        raise UserError(f"run={run} is read-only; copy it to a place of yours.")
    return run
