"""The settings of a run as frozen dataclasses of plain Python values; `config` makes them.

What each means and which values it takes stands beside it in conf/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tlx.errors import UserError, unknown

BatchNorm = Literal["frozen", "statistics", "trainable"]


@dataclass(frozen=True)
class BackboneSpec:
    name: str
    weights: str | None
    classifier: bool = False  # the hidden layers of its ImageNet classifier are blocks too


@dataclass(frozen=True)
class HeadSpec:
    pool: Literal["avg", "flatten"]
    hidden: tuple[int, ...]
    activation: str
    dropout: float
    allow_softmax: bool


ACTIVATIONS = ("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid", "softmax")


def check_layers(hidden: Sequence[int], activation: str, dropout: float) -> None:
    """Of a head: `dropout` is a fraction."""
    if activation not in ACTIVATIONS:
        raise unknown("head.activation", activation, ACTIVATIONS)
    if any(width < 1 for width in hidden):
        raise UserError(f"head.hidden={list(hidden)}: each width must be at least 1")
    if not 0 <= dropout < 1:
        raise UserError(
            f"head.dropout={dropout} is not a fraction: it must be at least 0 and below 1"
        )


@dataclass(frozen=True)
class PreprocessSpec:
    input: Literal["weights", "unit", "signed", "pixels", "caffe"]
    allow_mismatch: bool


@dataclass(frozen=True)
class DataSpec:
    source: Literal["folder", "csv", "torchvision", "elpv"]
    root: str | None
    table: str | None
    columns: Mapping[str, str] | None
    name: str | None
    val: float
    test: float
    split: Literal["stratified", "sequential"]
    group: str | None
    keep_together: Literal["near", "exact", "none"]
    split_seed: int | None
    folds: int | None
    fold: int
    per_class: int | None
    on_leak: Literal["error", "regroup", "warn"]
    exclude: str | None
    image_size: int | None
    resize: Literal["crop", "squash"]
    batch_size: int
    num_workers: int | None
    on_error: Literal["error", "skip"]
    alpha: Literal["white", "black"]
    icc: bool
    class_weights: Literal["balanced"] | Mapping[str, Any] | None
    sampling: Literal["shuffle", "balanced"]
    soft_labels: bool
    decode_cache: Literal["off", "ram", "disk"]
    decode_cache_bytes: float
    hint: str | None = None  # where the images of an experiment come from


def check_fractions(val: float, test: float) -> None:
    """Train gets what val and test leave, which has to be something."""
    for name, fraction in (("val", val), ("test", test)):
        if not 0 <= fraction < 1:
            raise UserError(f"data.{name}={fraction} is not a fraction: 0 or more, below 1.")
    if val + test >= 1:
        raise UserError(f"data.val={val} and data.test={test} leave nothing to train on.")


@dataclass(frozen=True)
class AugmentSpec:
    rotation_range: float
    width_shift_range: float
    height_shift_range: float
    shear_range: float
    zoom_range: float | tuple[float, ...]
    horizontal_flip: bool
    vertical_flip: bool
    fill_mode: Literal["nearest", "constant", "reflect", "wrap"]
    cval: float
    brightness_range: tuple[float, ...] | None
    channel_shift_range: float
    crop_scale: tuple[float, ...] | None
    crop_ratio: tuple[float, ...]
    policy: Literal["randaugment", "trivialaugment"] | None
    num_ops: int
    magnitude: int
    erasing: float
    mixup: float
    cutmix: float


@dataclass(frozen=True)
class OptimizerSpec:
    target: str
    lr: float
    settings: Mapping[str, Any]  # the class's other arguments


@dataclass(frozen=True)
class StageSpec:
    """Everything before `train_from` is frozen, everything from it on learns.

    `gradual` stands for several stages, which only the network's blocks tell: see
    `training.unfreezing.plain_stages`.
    """

    name: str
    train_from: str
    epochs: int
    gradual: bool
    batchnorm: BatchNorm
    batchnorm_learning: BatchNorm
    batchnorm_momentum: float | None
    hand_over: Literal["best", "last"]
    patience: int | None
    optimizer: OptimizerSpec
    find_lr: bool  # before the stage; the optimizer's rate is for where none is found
    lr_decay: float
    l2_sp: float | None
    ema: float | None
    scheduler: Mapping[str, Any]


@dataclass(frozen=True)
class TrainerSpec:
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: int | Literal["auto"]
    num_nodes: int
    strategy: Literal["auto", "ddp"]
    precision: Literal["auto", "32", "bf16-mixed", "16-mixed"]
    sync_batchnorm: bool
    accumulate: int
    clip: float | None
    checkpoint_steps: int | None
    limit_epochs: int | None
    limit_train: int | None
    limit_eval: int | None
    compile: bool
    winograd: bool


@dataclass(frozen=True)
class CacheSpec:
    mode: Literal["auto", "on", "off"]
    dir: str | None
    views: int | None
    max_bytes: float


@dataclass(frozen=True)
class Config:
    backbone: BackboneSpec
    head: HeadSpec
    stages: tuple[StageSpec, ...]
    preprocess: PreprocessSpec
    data: DataSpec
    augment: AugmentSpec
    trainer: TrainerSpec
    cache: CacheSpec
    allow_refreeze: bool
    loss: Literal["cross_entropy", "binary"]
    label_smoothing: float
    monitor: Literal["accuracy", "loss"]
    threshold: str | None
    positive: str | None
    tta: int
    seed: int
    test: bool | Literal["auto"]
    report: Literal["auto", "full", "quick", "none"]
    verbosity: Literal["auto", "rich", "plain", "quiet"]
