"""Pictures and weights in which nothing is wrong, and faults of a run, for several tests."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.tensorboard import SummaryWriter
from torchvision.models import get_model

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 30)}
SIDE = 32
BARS = {"train": 132, "val": 32, "test": 56}


def bars(path: Path, *, upright: bool, seed: int) -> None:
    """Bars of any colour, width and place, upright or lying: colours say nothing of the class."""
    random = np.random.default_rng(seed)
    wave = np.sin(np.arange(SIDE) * random.uniform(0.7, 1.3) + random.uniform(0, 6))
    pattern = np.tile(wave if upright else wave[:, None], (SIDE, 1) if upright else (1, SIDE))
    colour = random.uniform(20, 60, size=3)
    pixels = 120 + pattern[..., None] * colour + random.normal(0, 8, size=(SIDE, SIDE, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def folder_of_bars(root: Path) -> Path:
    """Two classes in folders of their splits."""
    for split, count in BARS.items():
        for number in range(count):
            kind = ("lying", "upright")[number % 2]
            path = root / split / kind / f"{number}.png"
            bars(path, upright=kind == "upright", seed=1000 * len(split) + number)
    return root


def shuffle_labels(root: Path) -> None:
    """Of train and val: as many of each class as before."""
    for split in ("train", "val"):
        paths = sorted((root / split).rglob("*.png"))
        for path, seed in zip(paths, np.random.default_rng(0).permutation(len(paths)), strict=True):
            bars(path, upright=bool(seed % 2), seed=10_000 * len(split) + seed)


def weights_file(path: Path, backbone: str, side: int = 64) -> Path:
    """No new network's: PyTorch's, with biases moved and BatchNorm's statistics as they belong."""
    torch.manual_seed(0)
    model = get_model(backbone, weights=None)
    batches = [torch.randn(16, 3, side, side) for _ in range(3)]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
        for batch in batches * 5:
            model.train()(batch)
    torch.save(model.state_dict(), path)
    return path


def read_rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_rows(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def answer_always(run: Path, name: str) -> None:
    """As a network does whose last layer has one large bias."""
    for split in ("val", "test"):
        path = run / "predictions" / f"{split}.csv"
        header, *rows = read_rows(path)
        p = ["0.9" if c == name else "0.05" for c in header[3:]]
        write_rows(path, [header, *([*row[:2], name, *p] for row in rows)])
    path = run / "model/model.safetensors"
    weights = load_file(path)
    bias = next(k for k in weights if k.startswith("head.") and k.endswith("bias"))
    weight = bias.removesuffix("bias") + "weight"
    index = sorted(COLOURS).index(name)
    weights[weight].zero_()
    weights[bias] = torch.tensor([0.9 if i == index else 0.05 for i in range(3)]).log()
    save_file(weights, path)


OVERFITTED = ([0.9, 0.7, 0.5, 0.3, 0.2, 0.1], [0.8, 0.6, 0.5, 0.7, 0.8, 0.9])


def plant_curves(run: Path, train: list[float], val: list[float]) -> None:
    """In place of the run's own, for its stage `top` of 3 steps an epoch."""
    for path in run.glob("events.out.tfevents.*"):
        path.unlink()
    with SummaryWriter(str(run)) as writer:
        writer.add_text("stage", "**top** learns from `x` on: 3 parameters", 0)
        for epoch, (t, v) in enumerate(zip(train, val, strict=True), start=1):
            writer.add_scalar("train/loss", t, 3 * epoch)
            writer.add_scalar("val/loss", v, 3 * epoch)


def change(path: Path, name: str, plant: Callable[[torch.Tensor], object]) -> None:
    weights = load_file(path)
    plant(weights[name])
    save_file(weights, path)
