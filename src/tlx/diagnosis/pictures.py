"""Pictures of what was found, where a picture says more than a number."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Examination
from tlx.diagnosis.run_folder import RunFolder
from tlx.evaluation.examples import augmented_views
from tlx.evaluation.figures import image_grid
from tlx.evaluation.learning_figures import learning_curves
from tlx.evaluation.style import pixels
from tlx.files import replace_atomically

Drawings = Mapping[str, Callable[[], Figure]]  # by cause


def of_case(case: Case) -> Drawings:
    """Of strong augmentation what a training image becomes."""

    def views() -> Figure:
        job = case.job
        found = augmented_views(job.manifest, job.config, job.model.preprocess)
        return image_grid(found, [f"view {i}" for i in range(len(found))])

    return {"strong_augmentation": views}


def of_run(run: RunFolder) -> Drawings:
    """Of overfitting the loss of train and val by epoch."""
    return {"overfitting": lambda: learning_curves(run.history, "loss")}


def illustrated(found: Examination, drawings: Drawings, output: Path) -> Examination:
    """With a PNG beside the file `output` for every cause found that has a drawing."""
    findings = []
    for finding in found.findings:
        if finding.cause in drawings:
            path = output.with_name(f"{output.stem}_{finding.cause}.png")
            with replace_atomically(path) as temporary:
                Image.fromarray(pixels(drawings[finding.cause]())).save(temporary, "PNG")
            findings.append(replace(finding, picture=str(path)))
        else:
            findings.append(finding)
    return replace(found, findings=tuple(findings))
