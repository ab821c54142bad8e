"""How a run learned, from what it logged: overfitting, NaN, gradients that vanish or explode."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from tlx.data.augment import Augment
from tlx.diagnosis.findings import Finding
from tlx.diagnosis.rates import LEAST_STEPS
from tlx.diagnosis.run_folder import RunFolder
from tlx.diagnosis.trial import config_key, lower_rate
from tlx.errors import UserError

Array = NDArray[np.float64]

AFTER = 3  # epochs after the best: fewer are chance
RISEN = 0.1  # of the lowest val loss: more than that is no chance any more
FALLING = 0.05  # of val loss in the last quarter of a stage: it would have gone on
HIGH, TIMES = 1e3, 100.0  # a gradient's norm, and over its median: exploding
LOW = 1e-5  # a block's gradient norm against the head's: vanishing
WORSE = 1.05  # times the loss of guessing: above it a training of LEAST_STEPS has failed
JUMPS, HUGE = 1.1, 10.0  # from epoch to epoch, and times the loss of guessing: the rate is too high


def overfitting(run: RunFolder) -> Iterator[Finding]:
    """From which epoch on val loss rises while train loss goes on falling, stage by stage."""
    for name, train, val in _by_stage(run):
        stage = next((s for s in run.stages if s.name == name), None)
        best = int(val.argmin()) if len(val) > AFTER else 0
        if stage is None or len(val) - best <= AFTER or not np.isfinite(val).all():
            continue
        last = float(val[-AFTER:].mean())
        rise = last / float(val[best]) - 1
        if rise <= RISEN or train[-1] >= train[best]:
            continue
        handed_on = stage.hand_over == "last"
        is_random = Augment(**asdict(run.config.augment)).is_random
        more = "a stronger augmentation" if is_random else "augment=light"
        yield Finding(
            "overfitting",
            "warning" if handed_on else "note",
            f"stage {name}: from epoch {best + 2} on val loss rises, from {val[best]:.3f} to "
            f"{last:.3f}, while train loss falls from {train[best]:.3f} to {train[-1]:.3f}; "
            f"{'the last' if handed_on else 'the best'} epoch's weights are handed on",
            f"{config_key(stage)}.hand_over=best {config_key(stage)}.patience=3"
            if handed_on
            else f"{more}; {config_key(stage)}.patience=3 would end the stage sooner",
            {
                "epoch": best + 2,
                "val_best": float(val[best]),
                "val_last": last,
                "train_best": float(train[best]),
                "train_last": float(train[-1]),
            },
        )


def still_improving(run: RunFolder) -> Iterator[Finding]:
    """Whether the last stage had all its epochs, ended with its lowest val loss, and had fallen
    in its last quarter."""
    stage = run.stages[-1]
    name, _, val = list(_by_stage(run))[-1]
    if name != stage.name or len(val) < max(stage.epochs, 2) or val.argmin() != len(val) - 1:
        return
    quarter = max(len(val) // 4, 1)
    fallen = 1 - float(val[-1] / val[-1 - quarter])
    if fallen > FALLING:
        yield Finding(
            "still_improving", "note",
            f"stage {name} ended with the lowest val loss of its {len(val)} epochs, {val[-1]:.3f}, "
            f"after {val[-1 - quarter]:.3f} {quarter} before it",
            f"{config_key(stage)}.epochs={2 * stage.epochs}",
            {"epochs": len(val), "val_last": float(val[-1]), "fallen": fallen},
        )  # fmt: skip


def worse_than_guessing(run: RunFolder) -> Iterator[Finding]:
    """Whether after all its steps train and val loss are above ln(classes)."""
    steps, every = run.history.series["train/loss"]
    stages = list(_by_stage(run))
    train = [losses for _, losses, _ in stages if len(losses)]
    last, val = float(every[-1]), [losses for _, _, losses in stages if len(losses)]
    guessing = float(np.log(max(len(run.manifest.classes), 2)))
    is_over = stages[-1][0] == run.stages[-1].name and steps[-1] >= LEAST_STEPS
    if not is_over or not val or not np.isfinite(every).all():
        return
    lowest = float(np.concatenate(val).min())
    if min(last, lowest) <= WORSE * guessing:
        return
    rises = any((losses[1:] > JUMPS * losses[:-1]).any() for losses in train)
    high = rises or every.max() > HUGE * guessing
    rates = ", ".join(dict.fromkeys(f"{s.optimizer.lr:g} in stage {s.name}" for s in run.stages))
    find = " ".join(dict.fromkeys(f"{config_key(s)}.lr=find" for s in run.stages))
    yield Finding(
        "learning_rate", "error",
        f"after {steps[-1]} steps train loss is {last:.3g}, from {every[0]:.3g} in the first "
        f"epoch, and val's was never below {lowest:.3g}; guessing has {guessing:.3g}. The rate "
        f"({rates}) is far too {'high' if high else 'low'}",
        find, {"train_first": float(every[0]), "train_last": last, "val_lowest": lowest,
               "guessing": guessing, "steps": float(steps[-1])},
    )  # fmt: skip


def _by_stage(run: RunFolder) -> Iterator[tuple[str, Array, Array]]:
    """(stage, train loss, val loss), one value an epoch."""
    history = run.history
    steps, train = history.series["train/loss"]
    if "val/loss" not in history.series:
        raise UserError("no val loss is logged yet")
    _, val = history.series["val/loss"]
    starts = [start for _, start in history.stages]
    for (name, start), end in zip(history.stages, [*starts[1:], np.inf], strict=True):
        inside = (steps > start) & (steps <= end)
        yield name, train[inside], val[inside]


def losses(run: RunFolder) -> Iterator[Finding]:
    """NaN or infinity in a logged loss or gradient norm: the first of them."""
    first: tuple[int, str, float] | None = None
    for tag, (steps, values) in run.history.series.items():
        if not tag.startswith(("train/loss", "val/loss", "gradient_norm/", "weight_norm/")):
            continue
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size and (first is None or steps[bad[0]] < first[0]):
            first = int(steps[bad[0]]), tag, float(values[bad[0]])
    if first is not None:
        step, tag, value = first
        yield Finding(
            "not_finite", "error", f"{tag} is {value} at step {step}, the first such value logged",
            f"{_lower_rate(run)}, or {_clip(run)}; trainer.precision=32 if it was less",
            {"step": step},
        )  # fmt: skip


def gradient_norms(run: RunFolder) -> Iterator[Finding]:
    """By layer group and stage, as logged every ten steps, before clipping."""
    series = run.history.series
    prefix = "gradient_norm/"
    groups = [tag.removeprefix(prefix) for tag in series if tag.startswith(prefix)]
    for group in groups:
        steps, norms = series[prefix + group]
        known = np.isfinite(norms)
        steps, norms = steps[known], norms[known]
        if not norms.size:
            continue
        worst = int(norms.argmax())
        usual = float(np.quantile(norms, 0.5, method="lower"))
        if norms[worst] > max(HIGH, TIMES * usual):
            yield Finding(
                "gradients", "warning",
                f"the gradient of {group} explodes: its norm is {norms[worst]:.3g} at step "
                f"{steps[worst]}, {usual:.3g} in the median",
                f"{_clip(run)}, or {_lower_rate(run)}",
                {"norm": float(norms[worst]), "median": usual, "step": int(steps[worst])},
            )  # fmt: skip
    yield from _vanishing(run, groups)


def _vanishing(run: RunFolder, groups: list[str]) -> Iterator[Finding]:
    """The lowest group speaks for those above it that vanish, too."""
    series = run.history.series
    if "gradient_norm/head" not in series:
        return
    head = dict(zip(*series["gradient_norm/head"], strict=True))
    for group in groups:
        pairs = [(g, head[s]) for s, g in zip(*series[f"gradient_norm/{group}"], strict=True)
                 if head.get(s, 0.0) > 0]  # fmt: skip
        share = float(np.median([g / h for g, h in pairs])) if pairs else 1.0
        if group != "head" and share < LOW:
            yield Finding(
                "gradients", "warning",
                f"the gradient vanishes on its way down: its norm in {group} is {share:.1g} of "
                "that in the head (median of the logged steps)",
                "a head without saturating activations (head.activation=relu), or learn from a "
                "later block on",
                {"share": share},
            )  # fmt: skip
            return


def _clip(run: RunFolder) -> str:
    set_to = run.config.trainer.clip
    return f"trainer.clip={1.0 if set_to is None else set_to / 10:g}"


def _lower_rate(run: RunFolder) -> str:
    """An override for a tenth of the rate of the last stage that began."""
    names = [name for name, _ in run.history.stages]
    stage = next((s for s in reversed(run.stages) if s.name in names), run.stages[0])
    return lower_rate(stage)
