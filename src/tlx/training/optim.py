"""Optimizers and schedules of one stage."""

import inspect
import math
import pkgutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from tlx.errors import UserError, unknown
from tlx.models.classifier import HEAD, Classifier
from tlx.specs import OptimizerSpec, StageSpec

SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "constant": ("warmup",),
    "cosine": ("warmup", "final"),
    "one_cycle": ("warmup", "final"),
    "plateau": ("factor", "patience"),
}
NO_DECAY = ".no_decay"
NOT_DECAYED = {
    "class_token", "pos_embedding", "relative_position_bias_table", "layer_scale", "logit_scale",
}  # fmt: skip


def optimizer_class(spec: OptimizerSpec) -> type[Optimizer]:
    """The class behind `_target_`; raises when it is none or does not take the settings."""
    try:
        found = pkgutil.resolve_name(spec.target)
    except (ImportError, AttributeError, ValueError):
        found = None
    if not (inspect.isclass(found) and issubclass(found, Optimizer)):
        raise UserError(
            f"optimizer _target_={spec.target!r} is no optimizer class; "
            "use a class path such as torch.optim.AdamW."
        )
    parameters = _parameters(found)
    for name in spec.settings:
        if name not in parameters:
            valid = [n for n in parameters if n not in ("self", "params")]
            error = unknown(f"setting of {spec.target}", name, valid)
            raise UserError(f"{error} ~optimizer.{name} takes out what conf/optimizer has.")
    return found


def build_optimizer(stage: StageSpec, classifier: Classifier) -> Optimizer:
    """A named parameter group for each layer group that learns, in the network's order.

    The head learns at the stage's rate, the layer group k places before it at that ×
    `lr_decay`**k. Weight decay spares what `is_decayed` says no to: those parameters of a layer
    group are a parameter group of their own, NAME.no_decay, where there is a decay to spare them.
    With `l2_sp` only the head's weights decay toward zero.
    """
    spec = stage.optimizer
    cls = optimizer_class(spec)
    decay = float(spec.settings.get("weight_decay", _default(cls, "weight_decay") or 0))
    groups: list[dict[str, Any]] = []
    for places, (name, module) in enumerate(reversed(classifier.groups.items())):
        own = decay if stage.l2_sp is None or name == HEAD else 0.0
        parts: dict[str, list[nn.Parameter]] = {name: [], f"{name}{NO_DECAY}": []}
        for path, parameter in module.named_parameters():
            if parameter.requires_grad:
                spared = own != 0 and not is_decayed(path, parameter)
                parts[f"{name}{NO_DECAY}" if spared else name].append(parameter)
        rate = spec.lr * stage.lr_decay**places
        for part, parameters in reversed(parts.items()):
            if parameters:
                group = {"name": part, "params": parameters, "lr": rate}
                if decay != 0:
                    group["weight_decay"] = 0.0 if part.endswith(NO_DECAY) else own
                groups.append(group)
    chosen = {"foreach", "capturable", "differentiable"} & spec.settings.keys()
    settings = {**({} if chosen else _fused(cls, groups)), **spec.settings}
    return cls(groups[::-1], lr=spec.lr, **settings)  # type: ignore[call-arg]


def check_optimizer(stage: StageSpec, classifier: Classifier, *, on_gpu: bool) -> None:
    """Raise for a class or settings that do not take the stage's parameters, or fail in a step.

    The step is not tried on a GPU: each process would begin to use the first one.
    """
    spec = stage.optimizer
    weight = nn.Parameter(torch.ones(1, 1))
    weight.grad = torch.ones(1, 1)
    try:
        build_optimizer(stage, classifier)
        if not on_gpu:
            trial = optimizer_class(spec)([weight], lr=spec.lr, **spec.settings)  # type: ignore[call-arg]
            trial.step(lambda: 1.0)
    except UserError:
        raise
    except Exception as error:  # IndexError for one beta, AssertionError for capturable
        settings = [f"{name}={value}" for name, value in spec.settings.items()]
        what = str(error) or type(error).__name__
        given = ", ".join(settings) or "no settings"
        raise UserError(f"optimizer {spec.target}: {what} (with {given}).") from error


def _fused(cls: type[Optimizer], groups: list[dict[str, Any]]) -> dict[str, bool]:
    """One pass over memory a step where PyTorch has that for the processor.

    On one core the step of VGG16's block5 and a head of 2 million weights took Adam 91 ms one
    tensor after the other, 35 in foreach form and 17 fused; SGD 17, 16 and 16; RMSprop, which has
    no fused form, 36 and 30. On a GPU PyTorch itself takes foreach.
    """
    on_cpu = all(p.device.type == "cpu" for group in groups for p in group["params"])
    has_it = cls.__module__.startswith("torch.optim.") and "fused" in _parameters(cls)
    return {"fused": True} if on_cpu and has_it else {}


def is_decayed(path: str, parameter: Tensor) -> bool:
    """Whether weight decay is for this parameter: not for norms, biases, scales and tokens.

    In torchvision's networks every norm's parameter is a vector, and no other weight is one.
    """
    return parameter.ndim > 1 and path.rsplit(".", 1)[-1] not in NOT_DECAYED


def layer_group_rates(optimizer: Optimizer) -> dict[str, float]:
    """The learning rate of each layer group."""
    return {g["name"].removesuffix(NO_DECAY): g["lr"] for g in optimizer.param_groups}


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(cls).parameters


def _default(cls: type, setting: str) -> Any:
    parameter = _parameters(cls).get(setting)
    return parameter.default if parameter is not None else None


def build_scheduler(
    settings: Mapping[str, Any], optimizer: Optimizer, steps: int
) -> LRScheduler | ReduceLROnPlateau:
    """The schedule of a stage of `steps` optimizer steps; all but `plateau` step with them."""
    check_schedule(settings)
    rest = {k: float(v) for k, v in settings.items() if k in SCHEDULES[settings["name"]]}
    match settings["name"]:
        case "plateau":
            return ReduceLROnPlateau(
                optimizer, factor=rest["factor"], patience=int(rest["patience"])
            )
        case "one_cycle":
            return LambdaLR(
                optimizer, lambda step: _one_cycle(step, rest["warmup"], rest["final"], steps)
            )
        case "constant":
            return LambdaLR(optimizer, lambda step: _warmup(step, rest["warmup"], steps))
        case _:
            return LambdaLR(
                optimizer,
                lambda step: (
                    _warmup(step, rest["warmup"], steps)
                    * _cosine(step, rest["warmup"], rest["final"], steps)
                ),
            )


def check_schedule(settings: Mapping[str, Any], stage: str = "NAME") -> None:
    """Raise for what is not given, which only a stage's own schedule can lack, or not allowed."""
    name = str(settings.get("name"))
    if name not in SCHEDULES:
        raise unknown("scheduler name", name, SCHEDULES)
    if others := settings.keys() - {"name"}.union(*SCHEDULES.values()):
        raise unknown(f"setting of the scheduler {name}", min(others), SCHEDULES[name])
    for key in SCHEDULES[name]:
        value = settings.get(key)
        if value is None:
            given = "".join(f"{k}: {v}, " for k, v in settings.items())
            raise UserError(
                f"the scheduler {name} needs {key}, a number: "
                f"'stage.{stage}.scheduler={{{given}{key}: …}}'."
            )
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UserError(f"scheduler.{key}={value!r}: {name} needs a number.") from None
        if key == "patience":
            if not (number >= 0 and number.is_integer()):
                raise UserError(f"scheduler.patience={value}: a number of epochs, 0 or more.")
        elif not 0 <= number <= 1:
            raise UserError(f"scheduler.{key}={value} is outside 0 to 1.")
        if key == "factor" and number == 1:
            raise UserError("scheduler.factor=1 would lower no rate; give less, such as 0.1.")


def _warmup(step: int, fraction: float, steps: int) -> float:
    """Rises linearly to 1 over the first `fraction` of the steps; the first step is above 0."""
    length = round(fraction * steps)
    return min(1.0, (step + 1) / (length + 1))


def _cosine(step: int, warmup: float, final: float, steps: int) -> float:
    length = round(warmup * steps)
    return _half_cosine(1, final, max(0, step - length) / max(1, steps - length))


def _one_cycle(step: int, warmup: float, final: float, steps: int) -> float:
    """From 1/25 up to 1 at step `warmup` × (steps - 1), down to `final` at the last one.

    torch's OneCycleLR divides by zero where the peak falls on the first or the last step.
    """
    peak = round(warmup * (steps - 1))
    if step < peak:
        return _half_cosine(1 / 25, 1, step / peak)
    return _half_cosine(1, final, (step - peak) / max(1, steps - 1 - peak))


def _half_cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
