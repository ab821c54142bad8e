"""A stage's learning rate, found by trying (Smith 2017, "Cyclical learning rates", section 3.3)."""

import copy
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from tlx.data.datamodule import Batch, ImageData
from tlx.files import replace_atomically, write_json
from tlx.specs import StageSpec
from tlx.training.module import StageModule
from tlx.training.optim import build_optimizer
from tlx.training.unfreezing import apply_stage

log = logging.getLogger(__name__)

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 100
WIDTH = 3.0  # steps, the standard deviation of the smoothing
NEARLY = 0.05  # of the fall
ENOUGH = 0.05  # the least fall of the smoothed loss, as a fraction of it, that says something


@dataclass(frozen=True)
class Sweep:
    """The loss of each batch of training before its step, at a rate that grows with every step,
    and what the untrained network's loss of that batch is: batches differ, which says nothing of
    the rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    untrained: tuple[float, ...]

    @property
    def compared(self) -> Tensor:
        """(steps,) float64: the losses as if all batches were equally hard."""
        untrained = torch.tensor(self.untrained, dtype=torch.float64)
        return torch.tensor(self.losses, dtype=torch.float64) - untrained + untrained.mean()


@dataclass(frozen=True)
class Choice:
    """`rate` is None where the sweep shows none to choose; `reason` is for the log."""

    rate: float | None
    reason: str


def find_rate(stage: StageSpec, folder: Path, sweep: Callable[[], Sweep]) -> StageSpec:
    """The stage with its rate found; `folder` keeps it, in lr.json, and what led to it, in lr.svg.

    A rate that is there already is taken, so that a resumed stage goes on with its own.
    """
    file = folder / "lr.json"
    if not file.exists():
        tried = sweep()
        choice = choose(tried)
        rate = stage.optimizer.lr if choice.rate is None else choice.rate
        with replace_atomically(folder / "lr.svg") as temporary:
            temporary.write_text(plot(tried, rate, stage.name), "utf-8")
        write_json(file, {"lr": rate, "reason": choice.reason, **asdict(tried)})
    found = json.loads(file.read_text("utf-8"))
    log.info("Stage %s: learning rate %.1e: %s (%s).", stage.name, found["lr"], found["reason"],
             folder / "lr.svg")  # fmt: skip
    return replace(stage, optimizer=replace(stage.optimizer, lr=found["lr"]))


def sweep(  # noqa: PLR0913 — all but two by name
    module: StageModule,
    data: ImageData,
    *,
    device: torch.device,
    bf16: bool,
    clip: float | None,
    limit: int | None,
) -> Sweep:
    """Train a copy of `module` on the stage's own batches, from LOWEST to HIGHEST rate.

    A step is one batch, whatever `trainer.accumulate` says; the pull of L2-SP is left out. Ends
    early when the loss has grown to 4 times what it was. With `limit` batches an epoch there are
    10 × `limit` steps, else STEPS. The random state is the same after as before.
    """
    trial = copy.deepcopy(module).to(device)
    apply_stage(trial.classifier, module.stage)
    trial.weigh(data.weights)
    untrained = copy.deepcopy(trial)
    unit = replace(module.stage, optimizer=replace(module.stage.optimizer, lr=1.0))
    optimizer = build_optimizer(unit, trial.classifier)
    shares = [group["lr"] for group in optimizer.param_groups]
    steps = STEPS if limit is None else min(STEPS, 10 * limit)
    rates, losses, others = _ladder(steps), list[float](), list[float]()
    chance = range(torch.cuda.device_count())
    with torch.random.fork_rng(chance):
        torch.manual_seed(module.seed)
        for rate, batch in zip(rates, _batches(data, limit), strict=False):
            inputs, targets, positions = (part.to(device) for part in batch)
            for group, share in zip(optimizer.param_groups, shares, strict=True):
                group["lr"] = rate * share
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                with torch.random.fork_rng(chance), torch.no_grad():  # the same dropout
                    other = untrained.train_losses(untrained(inputs), targets, positions).mean()
                loss = trial.train_losses(trial(inputs), targets, positions).mean()
            if not math.isfinite(loss.item()):
                break
            losses.append(loss.item())
            others.append(other.item())
            if sum(losses[-5:]) > 4 * sum(losses[:5]) and len(losses) > 5:
                break
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                clip_grad_norm_(trial.parameters(), clip)
            optimizer.step()
    return Sweep(tuple(rates[: len(losses)]), tuple(losses), tuple(others))


def _ladder(steps: int) -> list[float]:
    return [LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1)) for step in range(steps)]


def _batches(data: ImageData, limit: int | None) -> Iterator[Batch]:
    """The stage's first epochs, as long as they are asked for."""
    data.trainer = None  # that of the stage before, whose place in its epoch is not ours
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from itertools.islice(loader, limit)


def choose(tried: Sweep) -> Choice:
    """Midway, on a scale of logarithms, from where the smoothed loss falls most steeply to where it
    is lowest: the first is on the low side of the rates that train best, the second above them.
    """
    if len(tried.losses) < 10:
        return Choice(None, f"the loss diverged within {len(tried.losses)} steps of the sweep")
    loss = smooth(tried.compared)
    fall = loss[0] - loss.min()
    if fall < ENOUGH * loss[0]:
        return Choice(None, "the loss fell at no rate of the sweep, the default is taken")
    # the first that is as low as any: where the loss is near 0, batches differ again
    lowest = int((loss <= loss.min() + NEARLY * fall).nonzero()[0])
    if lowest >= len(loss) - WIDTH:
        return Choice(
            None, "the loss still fell at the last rate of the sweep, the default is taken"
        )
    (slopes,) = torch.gradient(loss[: lowest + 1])
    steep, low = tried.rates[int(slopes.argmin())], tried.rates[lowest]
    raw = smooth(torch.tensor(tried.losses, dtype=torch.float64))
    return Choice(
        math.sqrt(steep * low),
        f"the loss falls fastest at {steep:.1e}, and from {raw[0]:.3g} to {raw[lowest]:.3g} at "
        f"{low:.1e}",
    )


def smooth(losses: Tensor) -> Tensor:
    """A Gaussian mean over the neighbouring steps, which unlike a running mean does not lag."""
    steps = torch.arange(len(losses), dtype=losses.dtype)
    weights = torch.exp(-(((steps[:, None] - steps) / WIDTH) ** 2) / 2)
    return weights @ losses / weights.sum(dim=1)


def plot(tried: Sweep, rate: float, title: str) -> str:
    """An SVG drawing: the batches' losses, their smoothed line, and the rate that was taken."""
    losses = tried.compared if tried.losses else torch.zeros(1, dtype=torch.float64)
    line = smooth(losses)
    top = max(float(losses[:5].mean()) * 1.5, float(line.min()) * 1.5, 1e-9)

    def x(value: float) -> float:
        return 60 + 520 * math.log(value / LOWEST) / math.log(HIGHEST / LOWEST)

    def y(value: float) -> float:
        return 300 - 260 * min(max(value, 0.0), top) / top

    rates = tried.rates or (LOWEST,)
    points = zip(rates, losses.tolist(), line.tolist(), strict=True)
    dots, path = [], []
    for at, loss, mean in points:
        dots.append(f'<circle cx="{x(at):.1f}" cy="{y(loss):.1f}" r="2" fill="#bbb"/>')
        path.append(f"{x(at):.1f},{y(mean):.1f}")
    decades = range(round(math.log10(LOWEST)), round(math.log10(HIGHEST)) + 1)
    ticks = [f'<text x="{x(10.0**d):.1f}" y="318" text-anchor="middle">1e{d}</text>'
             for d in decades]  # fmt: skip
    marks = [f'<text x="54" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>'
             for v in (0.0, top / 2, top)]  # fmt: skip
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 350" width="600" '
            'font-family="sans-serif" font-size="12">',
            '<rect width="600" height="350" fill="white"/>',
            f'<text x="60" y="24" font-size="14">{title}: loss of training over the learning '
            f"rate; {rate:.1e} is taken</text>",
            '<path d="M60 40V300H580" fill="none" stroke="black"/>',
            *ticks, *marks, *dots,
            f'<polyline points="{" ".join(path)}" fill="none" stroke="#06c" stroke-width="2"/>',
            f'<line x1="{x(rate):.1f}" x2="{x(rate):.1f}" y1="40" y2="300" stroke="#c30"/>',
            "</svg>\n",
        ]
    )  # fmt: skip
