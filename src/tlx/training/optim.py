"""Optimizers and schedules of one stage."""

import inspect
import math
import pkgutil
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from tlx.config import OptimizerSpec
from tlx.errors import UserError, unknown
from tlx.models.classifier import Classifier

SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "constant": ("warmup",),
    "cosine": ("warmup", "final"),
    "one_cycle": ("warmup", "final"),
    "plateau": ("factor", "patience"),
}


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
    parameters = inspect.signature(found).parameters
    for name in spec.settings:
        if name not in parameters:
            valid = [n for n in parameters if n not in ("self", "params")]
            raise unknown(f"setting of {spec.target}", name, valid)
    return found


def build_optimizer(spec: OptimizerSpec, classifier: Classifier) -> Optimizer:
    """One named parameter group for each layer group that learns, in the network's order."""
    groups: list[dict[str, Any]] = []
    for name, module in classifier.groups.items():
        learning = [p for p in module.parameters() if p.requires_grad]
        if learning:
            groups.append({"name": name, "params": learning})
    return optimizer_class(spec)(groups, lr=spec.lr, **spec.settings)  # type: ignore[call-arg]


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
            return OneCycleLR(
                optimizer,
                max_lr=[group["lr"] for group in optimizer.param_groups],
                total_steps=steps,
                pct_start=rest["warmup"],
                final_div_factor=1 / (25 * rest["final"]),  # 25: the rate's start, by default
                cycle_momentum=False,
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


def check_schedule(settings: Mapping[str, Any]) -> None:
    name = str(settings.get("name"))
    if name not in SCHEDULES:
        raise unknown("scheduler name", name, SCHEDULES)
    for key in SCHEDULES[name]:
        value = settings.get(key)
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise UserError(f"scheduler.{key}={value!r}: {name} needs a number.") from None
        if not 0 <= number <= (math.inf if key == "patience" else 1):
            raise UserError(f"scheduler.{key}={value} is outside 0 to 1.")
    if name == "one_cycle" and float(settings["final"]) == 0:
        raise UserError("scheduler.final=0: one_cycle needs a fraction above 0, such as 1e-4.")


def _warmup(step: int, fraction: float, steps: int) -> float:
    """Rises linearly to 1 over the first `fraction` of the steps; the first step is above 0."""
    length = round(fraction * steps)
    return min(1.0, (step + 1) / (length + 1))


def _cosine(step: int, warmup: float, final: float, steps: int) -> float:
    length = round(warmup * steps)
    done = min(1.0, max(0, step - length) / max(1, steps - length))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))
