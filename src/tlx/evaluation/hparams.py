"""A run as one row of TensorBoard's HParams page."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
from tensorboard.plugins.hparams import (  # type: ignore[import-untyped]
    api_pb2,
    metadata,
    plugin_data_pb2,
)
from torch.utils.tensorboard import SummaryWriter

from tlx.data.augment import Augment
from tlx.specs import Config

# Every run writes the same columns: the page takes their list from one run, whichever comes first.
RESULTS = [f"results/{s}/{m}" for s in ("val", "test") for m in ("accuracy", "macro_f1", "loss")]
SHOWN = ("augment", "backbone", "lr", "seed", "stages")  # without a click; the page has room for 5


def write_hparams(
    writer: SummaryWriter, folder: Path, config: Config, metrics: Mapping[str, Any], step: int
) -> None:
    """Into the run's own events, so that no second run stands beside it."""
    for split in ("val", "test"):
        for name, value in metrics.get(split, {}).items():
            if isinstance(value, float):
                writer.add_scalar(f"results/{split}/{name}", value, step)
    values = {name: v for name, v in columns(folder, config).items() if v is not None}
    start = plugin_data_pb2.SessionStartInfo()
    for name, value in values.items():
        if isinstance(value, str):
            start.hparams[name].string_value = value
        else:
            start.hparams[name].number_value = value
    experiment = api_pb2.Experiment(
        hparam_infos=[
            api_pb2.HParamInfo(name=name, type=_type(value), differs=name in SHOWN)
            for name, value in values.items()
        ],
        metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in RESULTS],
    )
    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
    _add(writer, metadata.EXPERIMENT_TAG, experiment=experiment)
    _add(writer, metadata.SESSION_START_INFO_TAG, session_start_info=start)
    _add(writer, metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _add(writer: SummaryWriter, tag: str, **content: Any) -> None:
    """What torch's `add_hparams` adds, but to these events."""
    data = plugin_data_pb2.HParamsPluginData(**content)
    value = Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
    events: Any = writer.file_writer
    events.add_summary(Summary(value=[value]))


def _type(value: str | float) -> int:
    number = isinstance(value, (int, float))
    return int(api_pb2.DATA_TYPE_FLOAT64 if number else api_pb2.DATA_TYPE_STRING)


def columns(folder: Path, config: Config) -> dict[str, str | float | None]:
    """What is often compared, by name; and what the command line said, whatever it was."""
    first, last = config.stages[0], config.stages[-1]
    return {
        "backbone": config.backbone.name,
        "weights": config.backbone.weights or "none",
        "stages": " → ".join(f"{stage.name} {stage.epochs}" for stage in config.stages),
        "train_from": last.train_from,
        "epochs": sum(stage.epochs for stage in config.stages),
        "optimizer": first.optimizer.target.rpartition(".")[2],
        "scheduler": str(first.scheduler["name"]),
        "lr": first.optimizer.lr,
        "lr_last_stage": last.optimizer.lr,
        "lr_decay": last.lr_decay,
        "head_pool": config.head.pool,
        "head_hidden": " ".join(map(str, config.head.hidden)),
        "dropout": config.head.dropout,
        "loss": config.loss,
        "label_smoothing": config.label_smoothing,
        "batch_size": config.data.batch_size,
        "image_size": config.data.image_size,
        "fold": config.data.fold,
        "augment": _augment(config),
        "seed": config.seed,
        "command": _overrides(folder),
    }


def _augment(config: Config) -> str:
    plain = asdict(Augment())
    changed = {k: v for k, v in asdict(config.augment).items() if v != plain[k]}
    changed.pop("crop_ratio", None)  # 4/3 in YAML is not 4/3
    return " ".join(f"{name}={value}" for name, value in changed.items()) or "none"


def _overrides(folder: Path) -> str:
    """Hydra's list of them, a line each."""
    path = folder / ".hydra" / "overrides.yaml"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return " ".join(line.removeprefix("- ") for line in lines if line.startswith("- "))
