"""How a trained run ends: evaluated, examined, shown in TensorBoard, reported."""

from collections.abc import Sequence

from tlx.evaluation.board import write_board
from tlx.evaluation.results import finish
from tlx.training.job import Job
from tlx.training.run import StageResult


def conclude(
    job: Job, stages: Sequence[StageResult], *, started: float, with_test: bool, report: str
) -> None:
    """`report`: full | quick (without Grad-CAM) | none. metrics.json is written before the rest,
    and holds what the rest can be made of again."""
    finish(job, stages, with_test=with_test, started=started)
    preprocess = job.model.preprocess
    write_board(job.folder, job.config, job.manifest, preprocess, pictures=report != "none")
    if report != "none":
        from tlx.diagnosis.after import tell_after
        from tlx.evaluation.report import write_report

        tell_after(job.folder)
        path = write_report(job.folder, gradcam=report == "full", data_root=job.manifest.root)
        print(f"The report is in {path}")
