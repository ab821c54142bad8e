"""What tlx adds to a step: its head-only stage on cached features beside a bare Lightning loop.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py

Both train the same linear layer on the same 512 random features an image, 32 images a step, with
the same optimizer and schedule in float32 on the CPU. The bare loop has a `training_step` and
nothing else; tlx's has its callbacks, exact metrics, scalars and per-step seeding, as in a run.
Time is taken between the starts of successive batches, so that data loading, hooks and logging
count in both and the ends of epochs in neither. The two take turns. Where other programs run, the
processor's time tells more than the clock's.
"""

import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from tlx.composition import compose
from tlx.config import parse
from tlx.data.datasets import Features
from tlx.training import run as runs
from tlx.training.inputs import image_data
from tlx.training.job import prepare
from tlx.training.module import StageModule
from tlx.training.optim import build_optimizer, build_scheduler

REPEATS, EPOCHS, IMAGES = 7, 4, 3200


class Bare(LightningModule):
    """The head alone, trained as a first tutorial has it."""

    def __init__(self, job: runs.Job) -> None:
        super().__init__()
        self.head = job.model.classifier.head
        self.job = job

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        features, labels, _ = batch
        return F.cross_entropy(self.head(features), labels)

    def configure_optimizers(self) -> Any:
        stage = self.job.config.stages[0]
        optimizer = build_optimizer(stage, self.job.model.classifier)
        scheduler = build_scheduler(stage.scheduler, optimizer, EPOCHS * IMAGES // 32)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def steps_of(module: type[LightningModule]) -> list[tuple[float, float]]:
    """Milliseconds by the clock and of the processor between batches, while a `module` trains."""
    found: list[tuple[float, float]] = []
    last = [(0.0, 0.0)]
    original = module.training_step

    def timed(self: Any, batch: Any, batch_idx: int) -> Any:
        now = time.perf_counter(), time.process_time()
        if batch_idx > 1:
            found.append((1000 * (now[0] - last[0][0]), 1000 * (now[1] - last[0][1])))
        last[0] = now
        return original(self, batch, batch_idx)

    module.training_step = timed  # type: ignore[method-assign]
    return found


def medians_of(steps: list[tuple[float, float]]) -> tuple[float, float]:
    """Of what `steps` holds, which is then emptied."""
    wall, processor = zip(*steps, strict=True)
    steps.clear()
    return statistics.median(wall), statistics.median(processor)


def prepared(folder: Path, images: Path) -> tuple[runs.Job, Any]:
    """A run whose images are so many random features."""
    config = parse(
        compose(
            [
                "backbone=resnet18", "backbone.weights=null", "data=folder",
                f"data.root={images}", "data.image_size=32", "stage=head",
                f"stage.head.epochs={EPOCHS}", "trainer=cpu", "trainer.precision=32",
                "verbosity=plain", "data.num_workers=0", "data.keep_together=none",
            ]
        )
    )  # fmt: skip
    job = prepare(config, folder)
    data = image_data(job)
    split = {name: data.dataset(name) for name in ("train", "val")}
    features = {name: torch.randn(len(s), 512, 1, 1) for name, s in split.items()}
    data.features = Features(train=[features["train"]], val=features["val"])
    return job, data


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tlx_steps, bare_steps = steps_of(StageModule), steps_of(Bare)
    medians: dict[str, list[tuple[float, float]]] = {"tlx": [], "bare": []}
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary) / "images"
        for split, count in (("train", IMAGES), ("val", 64), ("test", 64)):
            for number in range(count):
                colour = (number % 256, number // 256, {"train": 0, "val": 1, "test": 2}[split])
                path = images / split / "ab"[number % 2] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), colour).save(path)
        for repeat in range(REPEATS):
            folder = Path(temporary) / str(repeat)
            folder.mkdir()
            job, data = prepared(folder, images)
            runs._train_stage(job, job.config.stages[0], data, folder / "checkpoints/head", 0)
            medians["tlx"].append(medians_of(tlx_steps))
            job, data = prepared(folder, images)
            runs.apply_stage(job.model.classifier, job.config.stages[0])
            trainer = Trainer(
                accelerator="cpu", max_epochs=EPOCHS, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
                use_distributed_sampler=False,
            )  # fmt: skip
            trainer.fit(Bare(job), train_dataloaders=data.train_dataloader())
            medians["bare"].append(medians_of(bare_steps))
    for index, clock in enumerate(("clock", "processor")):
        tlx, bare = ([pair[index] for pair in medians[name]] for name in ("tlx", "bare"))
        more = [a - b for a, b in zip(tlx, bare, strict=True)]
        for name, values in (("tlx", tlx), ("bare", bare), ("tlx - bare", more)):
            spread = f"{min(values):.2f} to {max(values):.2f} in {REPEATS} repeats"
            print(f"{clock:10} {name:10} {statistics.median(values):5.2f} ms a step ({spread})")


if __name__ == "__main__":
    main()
