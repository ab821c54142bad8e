"""python -m tlx.train: the main job."""

import json
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tlx.commands import command
from tlx.composition import (
    Begun,
    check_form,
    help_text,
    is_trial,
    resumed,
    run_hydra,
    saved_config,
)
from tlx.config import check_root, parse
from tlx.errors import UserError
from tlx.files import locked
from tlx.overrides import as_typed

log = logging.getLogger(__name__)

BEFORE_TRAINING = {
    ".hydra", ".lock", "train.log", "manifest.csv", "findings.json", "precision.json", "cache.json"
}  # fmt: skip
HYDRAS_OWN = {  # flags, after which there may be values
    "--cfg", "-c", "--info", "-i", "--config-dir", "-cd", "--config-name", "-cn", "--config-path",
    "-cp", "--package", "-p", "--hydra-help", "--shell-completion", "-sc", "--experimental-rerun",
}  # fmt: skip


@command()
def main(arguments: Sequence[str]) -> None:
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return
    if any(argument.startswith("resume=") for argument in arguments):
        raw, folder = resumed(arguments)
        if (folder / "metrics.json").exists():
            again = f"python -m tlx.report run={shlex.quote(str(folder))}"
            left = "" if (folder / "report.html").exists() else f" {again} makes its report."
            raise UserError(
                f"the run in {folder} is finished; its results are in metrics.json.{left}"
            )
        _log_as_hydra_does(folder)
        run(raw, folder)
        return
    for argument in arguments:
        if argument.startswith("hydra.run.dir=") and _is_first_process():
            _check_unused(Path(as_typed(argument.partition("=")[2])))
    _check_shared(arguments)
    if not HYDRAS_OWN & set(arguments):
        check_form([a for a in arguments if a not in ("-m", "--multirun", "--version")])
    run_hydra(_begin)


def _begin(begun: Begun) -> float:
    """A run of Hydra's. The other trials of a sweep go on where one cannot."""
    if not begun.is_trial:
        return command()(_run_anew)(begun)  # else Hydra prints the error as well
    try:
        return _run_trial(begun)
    except UserError as error:
        log.error("%s: %s", begun.folder.name, error)
        raise UserError(f"{begun.folder.name}: {error}") from None


def _run_anew(begun: Begun) -> float:
    try:
        raw = begun.config()
        if _is_first_process():
            _check_unused(begun.folder)
        return run(raw, begun.folder, begun)
    except UserError:
        if _is_first_process():
            _remove_refused(begun.folder)
        raise


def _run_trial(begun: Begun) -> float:
    """Where a sweep is begun again in its folder, it goes on: what is finished stays."""
    raw, folder = begun.config(), begun.folder
    if (folder / ".hydra" / "config.yaml").is_file() and saved_config(folder) == raw:
        if (folder / "metrics.json").is_file():
            log.info("%s is finished.", folder.name)
            stages = json.loads((folder / "metrics.json").read_text("utf-8"))["stages"]
            return float(stages[-1]["best"])
        return run(raw, folder, begun)
    _check_unused(folder, "hydra.sweep.dir")
    return run(raw, folder, begun)


def _remove_refused(folder: Path) -> None:
    """What was refused before it trained is no run to go on with, if no other process has it."""
    with suppress(UserError), locked(folder / ".lock", "another process has it"):
        if {path.name for path in folder.iterdir()} <= BEFORE_TRAINING:
            shutil.rmtree(folder, ignore_errors=True)


def _log_as_hydra_does(folder: Path) -> None:
    """A resumed run starts without Hydra: its lines go on the screen and on in train.log."""
    screen, file = logging.StreamHandler(sys.stdout), logging.FileHandler(folder / "train.log")
    screen.setFormatter(logging.Formatter("%(message)s"))
    file.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[screen, file], force=True)


def _is_first_process() -> bool:
    """By what Lightning, torchrun and Slurm set; without importing torch."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def _check_shared(arguments: Sequence[str]) -> None:
    """Processes that torchrun or srun start each have a clock, and would name folders by it."""
    counts = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    is_named = any(a.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for a in arguments)
    if not is_named and any(count.isdigit() and int(count) > 1 for count in counts):
        raise UserError(
            "processes started by torchrun or srun need one folder: add hydra.run.dir=DIR, on a "
            "disk that they share."
        )


def _check_unused(folder: Path, key: str = "hydra.run.dir") -> None:
    """A run is never overwritten, nor are two mixed. Before Hydra writes, where that is known."""
    if any((folder / name).exists() for name in ("checkpoints", "model", "metrics.json")):
        what = "a trial with other settings" if key == "hydra.sweep.dir" else "a run already"
        raise UserError(
            f"{key}={folder} holds {what}; choose another folder, "
            f"or go on with it: python -m tlx.train resume={folder}"
        )
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"{key}={folder} cannot be written: see {parent}.")


def run(raw: dict[str, Any], folder: Path, begun: Begun | None = None) -> float:
    """Train by the composed configuration into `folder`; the best score on val.

    Without `begun` the folder's own run goes on. A trial of a sweep leaves the test images alone
    unless `test=true`.
    """
    started = time.monotonic()
    in_sweep = is_trial(folder) if begun is None else begun.is_trial
    config = parse(raw)
    check_root(config.data)  # `check` does too, but torch takes seconds to come
    from tlx.training.devices import abandon, check_sweep, leave_group
    from tlx.training.plan import check

    check(config)
    if in_sweep:
        check_sweep(config.trainer)
    from tlx.training.checkpoints import Interrupted
    from tlx.training.job import hold, is_first_process, prepare
    from tlx.training.run import train_stages
    from tlx.training.screen import set_verbosity

    set_verbosity(config.verbosity)
    with hold(folder):
        if begun is not None and is_first_process():
            begun.keep()
        try:
            job = prepare(config, folder)
            if job.is_first_process and not (folder / "checkpoints").exists():
                from tlx.diagnosis.before import tell_before

                tell_before(job)
            stages = train_stages(job)
            leave_group()
            if job.is_first_process:
                from tlx.conclusion import conclude

                with_test = config.test is True or (config.test == "auto" and not in_sweep)
                report = (
                    ("none" if in_sweep else "full") if config.report == "auto" else config.report
                )
                # at least the stages' own, of which a resumed run has trained a part
                started = min(started, time.monotonic() - sum(stage.seconds for stage in stages))
                conclude(job, stages, started=started, with_test=with_test, report=report)
        except (Interrupted, KeyboardInterrupt) as stop:
            reason = str(stop) or "Ctrl-C"
            way = _way_on(folder, None if begun is None or not in_sweep else folder.parent)
            print(f"Stopped by {reason}. To go on: {way}", file=sys.stderr)
            sys.exit(getattr(stop, "exit_code", 130))
        except Exception as error:
            is_begun = (folder / "checkpoints").exists() and not isinstance(error, UserError)
            if is_begun and hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(f"Once that is mended, to go on: {_way_on(folder)}")
            abandon(error)
            raise
    return stages[-1].best


def _way_on(folder: Path, sweep: Path | None = None) -> str:
    """The command that ends what was stopped; `sweep` is the folder of a trial's."""
    run = shlex.quote(str(folder))
    way = f"python -m tlx.train resume={run}"
    if (folder / "metrics.json").exists():
        way = f"python -m tlx.report run={run}; the report alone is missing"
    if sweep is not None:
        given = shlex.quote(f"hydra.sweep.dir={sweep}")
        way = f"the same command with {given}; for this trial alone: {way}"
    return way


if __name__ == "__main__":
    main(sys.argv[1:])
