"""tlx's side: `python -m tlx.train` as a user starts it, with an empty cache folder of its own.

With --default its own stages, optimizer and head train on the files, whatever the schedule says;
with --uncached it trains on the images, so that an epoch can have fewer steps.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

VIEWS = 4


def main() -> None:
    args = common.arguments()
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary) / "run"
        limit = []
        if args.uncached or args.everything:
            limit = [f"trainer.limit_train={args.steps}"]
        if args.everything:
            limit += ["stage.top.train_from=all", "trainer.limit_eval=1"]
        recipe = [
            "head=mlp", f"data.batch_size={common.BATCH}", "loss=binary", "augment=keras",
            "augment.vertical_flip=true", "optimizer=rmsprop",
            f"optimizer.lr={common.HEAD_RATE}", "scheduler=constant",
            f"stage.head.epochs={args.head_epochs}", f"stage.top.epochs={args.top_epochs}",
            f"stage.top.lr={common.TOP_RATE}", f"cache={'off' if limit else 'on'}",
            f"cache.views={VIEWS}", *limit,
        ]  # fmt: skip
        command = [
            sys.executable, "-m", "tlx.train", "backbone=vgg16", "stage=finetune",
            "data=folder", f"data.root={args.data}", f"data.image_size={common.SIZE}",
            "data.resize=squash", "data.keep_together=none", "data.test=0", "data.on_leak=warn",
            f"cache.dir={temporary}/cache", f"seed={args.seed}", "test=false", "report=none",
            "verbosity=plain", f"hydra.run.dir={run}", *([] if args.default else recipe),
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=sys.stderr)
        taken = time.perf_counter() - started
        metrics = json.loads((run / "metrics.json").read_text("utf-8"))
        step = {}
        if args.everything:
            events = EventAccumulator(str(run)).Reload()
            rates = events.Scalars("speed/images_per_second")  # the last is the epoch's rest
            step = {"top_step": common.BATCH / rates[-2].value}
    head, top = metrics["stages"]
    val = metrics["val"]
    print(json.dumps({
        **step,
        "head_epoch": head["seconds"] / head["epochs"],
        "top_epoch": top["seconds"] / top["epochs"],
        "once": taken - head["seconds"] - top["seconds"], "seconds": taken,
        "right": round(val["accuracy"] * val["n"]), "images": val["n"],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
