"""Data, configuration and network examined before a training."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tlx.diagnosis import data, network
from tlx.diagnosis.case import Case
from tlx.diagnosis.examination import Examination, carry_out
from tlx.diagnosis.findings import as_json
from tlx.files import write_json
from tlx.specs import Config
from tlx.training.job import Job, prepare
from tlx.training.plan import check

CHEAP = (*network.CHEAP, *data.CHEAP)
FULL = (*network.FULL, *data.FULL)
TOLD = {"leak", "small_images"}  # training.job logs these itself

log = logging.getLogger(__name__)


def examine(case: Case, *, quick: bool = False) -> Examination:
    """Neither the network nor PyTorch's random numbers are other ones afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # a check that loads weights again need not say so again
    try:
        with torch.random.fork_rng():
            return carry_out(CHEAP if quick else CHEAP + FULL, case)
    finally:
        logging.disable(before)


def examine_config(
    config: Config, *, quick: bool = False, output: Path | None = None
) -> Examination:
    """What train would refuse as a wrong input or head is found here instead.

    Pictures go beside `output`. Raises UserError for the rest of what train refuses: there is
    nothing to examine then.
    """
    lenient = replace(
        config,
        preprocess=replace(config.preprocess, allow_mismatch=True),
        head=replace(config.head, allow_softmax=True),
        data=replace(config.data, on_leak="warn"),
    )
    check(lenient)
    with TemporaryDirectory() as folder:
        job = prepare(lenient, Path(folder))
        given = replace(
            job.config, preprocess=config.preprocess, head=config.head, data=config.data
        )
        case = Case(replace(job, config=given))
        found = examine(case, quick=quick)
        if output is None:
            return found
        from tlx.diagnosis.pictures import illustrated, of_case

        return illustrated(found, of_case(case), output)


def tell(job: Job) -> None:
    """Train's own examination: the cheap part, into the log and the run's findings.json."""
    found = examine(Case(job), quick=True)
    for finding in found.findings:
        if finding.severity != "note" and finding.cause not in TOLD:
            log.warning("%s: %s (%s)", finding.cause, finding.evidence, finding.fix)
    path = job.folder / "findings.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    write_json(path, known | {"doctor": as_json(found.findings)})
