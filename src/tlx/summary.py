"""python -m tlx.summary: the parameter table, per block and stage."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tlx.commands import command, split_arguments
from tlx.composition import compose
from tlx.config import parse
from tlx.errors import UserError
from tlx.specs import Config

if TYPE_CHECKING:
    from rich.table import Table

HELP = """\
tlx summary: the parameter table, per block and in total, trainable and frozen.

  python -m tlx.summary backbone=vgg16 stage=finetune num_classes=5 [format=json]

Takes train's settings (python -m tlx.train --help) and
  num_classes=N   how many classes; without it they are counted in the data
  format=json     one JSON object: total, trainable, frozen (parameters), tensors and
                  trainable_tensors as of the last stage, and stages
"""


@command(HELP)
def main(arguments: Sequence[str]) -> None:
    own, overrides = split_arguments(arguments, {"num_classes": "", "format": "table"})
    if own["format"] not in ("table", "json"):
        raise UserError(f"format={own['format']} is not valid; it takes table | json.")
    if own["num_classes"] and not (own["num_classes"].isdigit() and int(own["num_classes"]) > 1):
        raise UserError(f"num_classes={own['num_classes']}: give a whole number above 1.")
    # No images are needed when the number of classes is known: the default data serve.
    raw = compose(overrides if not own["num_classes"] else _without_root(overrides))
    config = parse(raw)
    from tlx.training.plan import check, read_manifest

    check(config)
    classes = int(own["num_classes"] or len(read_manifest(config).classes))
    tables = summarize(config, classes)
    if own["format"] == "json":
        print(json.dumps(tables))
    else:
        _show(tables)


def _without_root(overrides: Sequence[str]) -> list[str]:
    given = any(o.split("=")[0].lstrip("+") == "data.root" for o in overrides)
    return [*overrides, *([] if given else ["data.root=null"])]


def summarize(config: Config, num_classes: int) -> dict[str, Any]:
    """`total`, `trainable`, `frozen` as of the last stage, and each stage with its blocks."""
    from tlx.models.classifier import parameter_table
    from tlx.training.plan import meta_classifier
    from tlx.training.unfreezing import apply_stage, plain_stages

    classifier = meta_classifier(config, num_classes)
    stages = []
    for stage in plain_stages(classifier, config.stages):
        apply_stage(classifier, stage)
        rows = parameter_table(classifier)
        total, trainable = sum(r.total for r in rows), sum(r.trainable for r in rows)
        learns = [parameter.requires_grad for parameter in classifier.parameters()]
        stages.append(
            {
                "name": stage.name,
                "train_from": classifier.boundary(stage.train_from).path,
                "epochs": stage.epochs,
                "total": total,
                "trainable": trainable,
                "frozen": total - trainable,
                "tensors": len(learns),
                "trainable_tensors": sum(learns),
                "blocks": [
                    {"name": r.group, "total": r.total, "trainable": r.trainable} for r in rows
                ],
            }
        )
    counts = ("total", "trainable", "frozen", "tensors", "trainable_tensors")
    last = {key: stages[-1][key] for key in counts}
    return {"backbone": config.backbone.name, "num_classes": num_classes, **last, "stages": stages}


def _show(tables: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    wide = _by_block(tables)
    needed = console.measure(wide, options=console.options.update(max_width=10_000)).maximum
    console.print(wide if needed <= console.width else _by_stage(tables))


def _table(tables: dict[str, Any], texts: Sequence[str], numbers: Sequence[str]) -> "Table":
    from rich.table import Table

    table = Table(title=f"{tables['backbone']}, {tables['num_classes']} classes: parameters")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _by_block(tables: dict[str, Any]) -> "Table":
    """A row for each block, a column for each stage."""
    stages = tables["stages"]
    names = [f"trainable\nin {stage['name']}" for stage in stages]
    table = _table(tables, ["block"], ["total", *names])
    for i, block in enumerate(stages[0]["blocks"]):
        counts = [f"{stage['blocks'][i]['trainable']:,}" for stage in stages]
        table.add_row(block["name"], f"{block['total']:,}", *counts)
    table.add_section()
    table.add_row("all", f"{tables['total']:,}", *(f"{s['trainable']:,}" for s in stages))
    table.add_row("frozen", "", *(f"{s['frozen']:,}" for s in stages))
    table.add_row("tensors", f"{tables['tensors']}", *(f"{s['trainable_tensors']}" for s in stages))
    return table


def _by_stage(tables: dict[str, Any]) -> "Table":
    """A row for each block of each stage, for stages that are too many to stand side by side."""
    table = _table(tables, ["stage", "block"], ["total", "trainable"])
    for stage in tables["stages"]:
        for i, block in enumerate(stage["blocks"]):
            name = "" if i else stage["name"]
            table.add_row(name, block["name"], f"{block['total']:,}", f"{block['trainable']:,}")
        table.add_section()
        table.add_row("", "all", f"{stage['total']:,}", f"{stage['trainable']:,}")
        table.add_row("", "frozen", "", f"{stage['frozen']:,}")
        table.add_row("", "tensors", f"{stage['tensors']}", f"{stage['trainable_tensors']}")
        table.add_section()
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
