"""From plain dicts to the typed settings of a run; mistakes are named.

Nothing here imports torch, so that `--help` and a mistyped key answer at once.
"""

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from tlx.composition import stage_defaults
from tlx.errors import UserError, unknown
from tlx.models.catalog import family_of
from tlx.models.decision import parse_aim
from tlx.specs import (
    AugmentSpec,
    BackboneSpec,
    CacheSpec,
    Config,
    DataSpec,
    HeadSpec,
    OptimizerSpec,
    PreprocessSpec,
    StageSpec,
    TrainerSpec,
    check_fractions,
    check_layers,
)

T = TypeVar("T")


OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "rmsprop": "RMSprop", "sgd": "SGD"}
POSITIVE = {
    "data.batch_size", "data.image_size", "trainer.accumulate", "trainer.clip", "trainer.num_nodes",
    "trainer.devices", "data.per_class", "tta", "trainer.checkpoint_steps", "trainer.limit_epochs",
    "trainer.limit_train", "trainer.limit_eval", "cache.views", "cache.max_bytes",
    "data.decode_cache_bytes",
}  # fmt: skip


def parse(raw: Mapping[str, Any]) -> Config:
    """The validated settings of a composed configuration (plain dicts, as Hydra resolved them)."""
    top = {k: v for k, v in raw.items() if k not in ("experiment", "resume")}
    valid = {f.name for f in fields(Config)} - {"stages"} | {"stage", "optimizer", "scheduler"}
    for key in top:
        if key not in valid:
            raise unknown("key", key, sorted(valid))
    if missing := sorted(valid - top.keys()):
        raise UserError(f"{missing[0]} is not given; was this saved by another version of tlx?")
    hints = typing.get_type_hints(Config)
    groups = {"backbone", "head", "preprocess", "data", "augment", "cache", "trainer", "stages"}
    plain = {k: top[k] for k in hints if k not in groups}
    if (threshold := top["threshold"]) is not None:
        parse_aim(str(threshold))  # raises, for a number too
    config = Config(
        backbone=_typed(BackboneSpec, top["backbone"], "backbone"),
        head=_typed(HeadSpec, top["head"], "head"),
        stages=_stages(top["stage"], top["optimizer"], top["scheduler"]),
        preprocess=_typed(PreprocessSpec, top["preprocess"], "preprocess"),
        data=_typed(DataSpec, top["data"], "data"),
        augment=_typed(AugmentSpec, top["augment"], "augment"),
        cache=_typed(CacheSpec, top["cache"], "cache"),
        trainer=_typed(TrainerSpec, top["trainer"], "trainer"),
        **{k: _checked(v, hints[k], k) for k, v in plain.items()},
    )
    family_of(config.backbone.name)  # raises for a name that is none
    check_fractions(config.data.val, config.data.test)
    check_layers(config.head.hidden, config.head.activation, config.head.dropout)
    if config.seed < 0:
        raise UserError(f"seed={config.seed} is negative; give 0 or more.")
    if config.seed >= 2**63:
        raise UserError(f"seed={config.seed} is too large; give less than 2 to the power of 63.")
    if (config.data.num_workers or 0) < 0:
        raise UserError(f"data.num_workers={config.data.num_workers} is negative; give 0 or more.")
    return config


def check_root(data: DataSpec) -> None:
    """Raises where the images are to come from a folder that is not there."""
    is_made = data.source == "torchvision"  # its downloads make the folder
    if data.root is not None and not is_made and not Path(data.root).expanduser().exists():
        raise UserError(f"data.root={data.root}: no such folder. {data.hint or ''}".strip())


def _stages(
    stages: Mapping[str, Any], optimizer: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> tuple[StageSpec, ...]:
    if not stages:
        raise UserError("no stage to train; choose stage=head, finetune, gradual, full or scratch.")
    specs = []
    for name, settings in stages.items():
        key = f"stage.{name}"
        if not isinstance(settings, Mapping):
            raise UserError(f"{key}={settings!r} is no stage; it takes settings such as epochs=5.")
        for needed in ("train_from", "epochs"):
            if needed not in settings:
                raise UserError(f"{key}.{needed} is not given; add +{key}.{needed}=…")
        own = {**stage_defaults(), **settings}
        lr = _checked(own.pop("lr", None), float | Literal["find"] | None, f"{key}.lr")
        own["find_lr"] = lr == "find"
        if not isinstance(lr, float):
            scale = _checked(own.pop("lr_scale", 1.0), float, f"{key}.lr_scale")
            if optimizer.get("lr") == "find":
                raise UserError(f"optimizer.lr=find: a rate is found for a stage: {key}.lr=find.")
            lr = _checked(optimizer.get("lr"), float, "optimizer.lr") * scale
        if not 0 < lr < math.inf:
            raise UserError(f"{key}: a learning rate of {lr:g}; it must be above 0, and finite.")
        own.pop("lr_scale", None)
        if "lr" in (own.get("optimizer") or {}):
            raise UserError(f"{key}.optimizer.lr: write {key}.lr={own['optimizer']['lr']} instead.")
        _check_own(own, key)
        own["optimizer"] = _optimizer(own.get("optimizer") or optimizer, lr, key)
        own["scheduler"] = own.get("scheduler") or scheduler
        spec = _typed(StageSpec, {"name": name, **own}, key)
        if spec.patience is not None and spec.patience < 1:
            raise UserError(f"{key}.patience={spec.patience}: 1 epoch or more, or null.")
        if spec.epochs < 1:
            raise UserError(f"{key}.epochs={spec.epochs}: a stage trains for 1 epoch or more.")
        _check_rates(spec, key)
        if spec.batchnorm_momentum is not None and not 0 < spec.batchnorm_momentum <= 1:
            raise UserError(
                f"{key}.batchnorm_momentum={spec.batchnorm_momentum:g} is not above 0 and at most "
                "1; for statistics that stand still use batchnorm=frozen."
            )
        specs.append(spec)
    return tuple(specs)


def _check_own(own: Mapping[str, Any], key: str) -> None:
    """A stage's own scheduler or optimizer is no choice: stage.NAME.scheduler=cosine."""
    if isinstance(given := own.get("scheduler"), str):
        fix = f"scheduler={{name: {given}}}"
        raise UserError(f"{key}.scheduler={given}: a stage's own is '{key}.{fix}'.")
    if isinstance(given := own.get("optimizer"), str):
        fix = f"optimizer={{_target_: torch.optim.{OPTIMIZERS.get(given.casefold(), given)}}}"
        raise UserError(f"{key}.optimizer={given}: a stage's own is '{key}.{fix}'.")


def _check_rates(spec: StageSpec, key: str) -> None:
    if not 0 < spec.lr_decay <= 1:
        raise UserError(f"{key}.lr_decay={spec.lr_decay:g}: it must be above 0 and at most 1.")
    if spec.l2_sp is not None and not 0 <= spec.l2_sp < math.inf:
        raise UserError(f"{key}.l2_sp={spec.l2_sp:g}: a strength of 0 or more, such as 0.01.")
    if spec.ema is not None and not 0 < spec.ema < 1:
        raise UserError(f"{key}.ema={spec.ema:g}: a decay between 0 and 1, such as 0.999.")


def _optimizer(settings: Mapping[str, Any], lr: float, key: str) -> OptimizerSpec:
    target = settings.get("_target_")
    if not isinstance(target, str):
        raise UserError(f"{key}: the optimizer needs _target_, a class such as torch.optim.AdamW.")
    rest = {name: value for name, value in settings.items() if name not in ("_target_", "lr")}
    return OptimizerSpec(target=target, lr=lr, settings=rest)


def _typed(cls: type[T], values: Any, key: str) -> T:
    """`values` as the dataclass: every key known, every field given, every value of its type."""
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise unknown("key", f"{key}.{name}", [f"{key}.{n}" for n in hints])
    required = {f.name for f in fields(cls) if f.default is MISSING}  # type: ignore[arg-type]
    if missing := sorted(required - values.keys()):
        raise UserError(
            f"{key}.{missing[0]} is not given; was this saved by another version of tlx?"
        )
    return cls(**{n: _checked(v, hints[n], f"{key}.{n}") for n, v in values.items()})


def _checked(value: Any, hint: Any, key: str) -> Any:
    """`value` when it is of the annotated type; numbers in YAML such as 1e-3 are read as such."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    for option in options:
        ok, converted = _as(value, option)
        if ok:
            if key in POSITIVE and isinstance(converted, (int, float)) and not converted > 0:
                raise UserError(f"{key}={value} must be above 0.")
            return converted
    wanted = " or ".join(_spell(option) for option in options)
    fix = f": '{key}=[{value}]'" if hint == tuple[int, ...] and isinstance(value, int) else ""
    raise UserError(f"{key}={value!r} is not valid; it takes {wanted}{fix}.")


def _as(value: Any, option: Any) -> tuple[bool, Any]:  # noqa: PLR0911
    origin = typing.get_origin(option)
    if origin is Literal:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        return text in typing.get_args(option), text
    if origin is tuple:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False, None
        items = [_as(item, typing.get_args(option)[0]) for item in value]
        return all(ok for ok, _ in items), tuple(item for _, item in items)
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping), value
    if option is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return True, float(value)
        except ValueError:
            return False, None
    if option is str and isinstance(value, int) and not isinstance(value, bool):
        return True, str(value)
    if option is int and isinstance(value, bool):
        return False, None
    return isinstance(value, option), value


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType"


def _spell(option: Any) -> str:
    if typing.get_origin(option) is Literal:
        return " | ".join(str(a) for a in typing.get_args(option))
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if typing.get_origin(option) is not None and issubclass(typing.get_origin(option), Mapping):
        return "{NAME: VALUE}"
    return "null" if option is type(None) else names.get(option, "a list of numbers")
