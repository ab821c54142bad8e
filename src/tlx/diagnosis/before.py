"""Data, configuration and network examined before a training."""

import logging
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tlx.diagnosis.activity import (
    finite_values,
    living_units,
    one_batch,
    outputs_are_logits,
    train_and_evaluation_mode,
)
from tlx.diagnosis.case import Case
from tlx.diagnosis.claims import few_images
from tlx.diagnosis.findings import Examination, carry_out, tell
from tlx.diagnosis.inputs import input_mismatch, small_images
from tlx.diagnosis.labels import labels_and_augmentation
from tlx.diagnosis.loaded import tensors_finite, weights_loaded
from tlx.diagnosis.rates import first_steps
from tlx.diagnosis.splits import augmented_evaluation, class_order, label_conflict, leak
from tlx.diagnosis.structure import everything_learns, random_head, softmax_or_sigmoid, tiny_batches
from tlx.specs import Config
from tlx.training.job import Job, prepare
from tlx.training.plan import check

# By what they look at and what they cost.
NETWORK = (
    weights_loaded, tensors_finite, softmax_or_sigmoid, everything_learns, random_head, tiny_batches
)  # fmt: skip
DATA = (
    input_mismatch,
    small_images,
    class_order,
    leak,
    label_conflict,
    augmented_evaluation,
    few_images,
)
NETWORK_FULL = (
    finite_values, living_units, outputs_are_logits, train_and_evaluation_mode, first_steps,
    one_batch,
)  # fmt: skip
CHEAP, FULL = NETWORK + DATA, (*NETWORK_FULL, labels_and_augmentation)


def examine(case: Case, *, quick: bool = False) -> Examination:
    """Neither the network nor PyTorch's random numbers are other ones afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # a check that loads weights again need not say so again
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
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
    with TemporaryDirectory() as folder:
        case = case_of(config, Path(folder))
        found = examine(case, quick=quick)
        if output is None:
            return found
        from tlx.diagnosis.pictures import illustrated, of_case

        return illustrated(found, of_case(case), output)


def case_of(config: Config, folder: Path) -> Case:
    on_leak = "warn" if config.data.on_leak == "error" else config.data.on_leak
    lenient = replace(
        config,
        preprocess=replace(config.preprocess, allow_mismatch=True),
        head=replace(config.head, allow_softmax=True),
        data=replace(config.data, on_leak=on_leak),
    )
    check(lenient)
    job = prepare(lenient, folder)
    given = replace(job.config, preprocess=config.preprocess, head=config.head, data=config.data)
    return Case(replace(job, config=given))


def tell_before(job: Job) -> None:
    """Train's own examination: the cheap part."""
    tell(job.folder, examine(Case(job), quick=True).findings)
