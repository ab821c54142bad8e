"""report.html: a finished run in one file that needs nothing else, to read, print and mail."""

import re
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from tlx import __version__
from tlx.evaluation.finished import FinishedRun, read_run
from tlx.evaluation.sections.data import data
from tlx.evaluation.sections.failures import failures
from tlx.evaluation.sections.learning import learning
from tlx.evaluation.sections.quality import headline, quality
from tlx.evaluation.sections.usage import reproduction, usage
from tlx.evaluation.shown import duration, interval, listed, percent
from tlx.evaluation.style import printable
from tlx.files import replace_atomically

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def write_report(run: Path, *, gradcam: bool, data_root: Path | None = None) -> Path:
    """Write `run`/report.html from what the run's folder holds and, where they are, the images.

    What is missing is left out and said. Raises UserError for a folder that is no run's.
    """
    finished = read_run(run, data_root)
    html = _page().render(_contents(finished, gradcam=gradcam))
    path = run / "report.html"
    with replace_atomically(path) as temporary:
        temporary.write_text(html, "utf-8")
    return path


def _page() -> Any:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: _lines(value) if isinstance(value, str) else value,
    )
    environment.filters |= {
        "percent": percent, "interval": interval, "listed": listed, "duration": duration,
        "number": lambda value: f"{value:,}",
    }  # fmt: skip
    return environment.from_string(TEMPLATE.read_text("utf-8"))


def _lines(text: str) -> str:
    """Control characters have no escape in HTML; lines may end. What is markup stays markup."""
    clean = re.sub(r"[^\n]+", lambda line: printable(line[0]), text)
    return clean if clean != text else text


def _contents(run: FinishedRun, *, gradcam: bool) -> dict[str, Any]:
    return {
        "headline": headline(run),
        "backbone": run.raw["backbone"]["name"],
        "views": run.model.views.count if run.model is not None else 1,
        "pretrained": run.raw["backbone"]["weights"] is not None,
        "classes": run.classes,
        "trained_on": len(run.manifest.split("train")) if run.manifest is not None else None,
        "seconds": run.metrics.get("seconds"),
        "has_images": run.has_images,
        "gradcam": gradcam,
        "split": run.split,
        "quality": quality(run),
        "failures": failures(run, gradcam=gradcam),
        "data": data(run),
        "learning": learning(run),
        "usage": usage(run),
        "reproduction": reproduction(run),
        "version": __version__,
        "folder": run.folder.name,
        "today": datetime.now().astimezone().strftime("%-d %B %Y"),
    }
