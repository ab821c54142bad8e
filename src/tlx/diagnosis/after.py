"""A run examined from its folder, as far as it went."""

from pathlib import Path

from tlx.diagnosis.findings import Examination, carry_out, tell
from tlx.diagnosis.learning import (
    gradient_norms,
    losses,
    overfitting,
    still_improving,
    worse_than_guessing,
)
from tlx.diagnosis.pictures import illustrated, of_run
from tlx.diagnosis.predictions import few_images, files_and_manifest, one_class, predicted_again
from tlx.diagnosis.run_folder import RunFolder
from tlx.diagnosis.saved import class_order, frozen_blocks, input_of_the_model, saved_weights

CHEAP = (
    class_order,
    input_of_the_model,
    files_and_manifest,
    one_class,
    losses,
    worse_than_guessing,
    gradient_norms,
    overfitting,
    still_improving,
    few_images,
)
FULL = (saved_weights, frozen_blocks, predicted_again)


def examine_run(
    folder: Path, *, root: Path | None = None, quick: bool = False, output: Path | None = None
) -> Examination:
    """What an unfinished run has not written yet is said to be not examined.

    `root` is where the images are now, if they were moved; pictures go beside `output`.
    """
    run = RunFolder(folder, root)
    found = carry_out(CHEAP if quick else CHEAP + FULL, run)
    return found if output is None else illustrated(found, of_run(run), output)


def tell_after(folder: Path) -> None:
    """Of a run that has just ended: the cheap part, which needs no image."""
    tell(folder, examine_run(folder, quick=True).findings)
