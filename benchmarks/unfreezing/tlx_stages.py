"""What tlx's stages do before, at and after an unfreeze, on tiny random images.

    pip install .
    python benchmarks/unfreezing/tlx_stages.py [1 … 7]

Each line is one measured fact and begins with its line in the table of docs/unfreezing.md.
"""

import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import mode_gap, moved, state

import tlx
from tlx.composition import compose
from tlx.config import parse
from tlx.training import run
from tlx.training.job import prepare
from tlx.training.unfreezing import StagedUnfreezing

SETTINGS = [
    "backbone=shufflenet_v2_x0_5", "backbone.weights=null", "data=folder", "data.image_size=32",
    "data.batch_size=4", "trainer=cpu", "trainer.precision=32", "verbosity=quiet",
    "augment=light", "cache=off", "head.dropout=0.5", "stage.head.epochs=1", "optimizer.lr=0.01",
]  # fmt: skip
TWO_STAGES = [
    "stage=finetune", "stage.top.epochs=3", "stage.top.train_from=stage4", "stage.top.lr_decay=0.5",
]  # fmt: skip


class Watched(StagedUnfreezing):
    """What a stage starts from, what learns in it, and what each process ends with."""

    seen = {}  # noqa: RUF012  # by the stage's name, for whoever runs it
    folder = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            names = {n for n, p in self.classifier.named_parameters() if p.requires_grad}
            images = pl_module.preprocess.normalize(batch[0])
            self.seen[self.stage.name] = {
                "start": state(self.classifier),
                "learning": names,
                "gap": mode_gap(self.classifier.backbone, images),
            }

    def on_train_end(self, trainer, pl_module):
        self.seen[self.stage.name]["end"] = state(self.classifier)
        if self.folder is not None:
            file = self.folder / f"{self.stage.name}-{trainer.global_rank}.pt"
            torch.save(state(self.classifier), file)


def train(folder, images, *overrides):
    """What was seen of each stage, and the classifier."""
    config = parse(compose([*SETTINGS, f"data.root={images}", *overrides]))
    folder.mkdir(exist_ok=True)
    Watched.seen = {}
    job = prepare(config, folder)
    run.train_stages(job)
    return Watched.seen, job.model.classifier


def make_images(folder):
    rng = np.random.default_rng(0)
    for name in ("blue", "green", "red"):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def frozen_layers(folder, images):
    for policy in ("frozen", "statistics", "trainable"):
        backbone = "efficientnet_b0"  # BatchNorm and stochastic depth
        seen, _ = train(
            folder / policy, images, "stage=head", f"stage.head.batchnorm={policy}",
            f"backbone={backbone}", "backbone.weights=null",
        )  # fmt: skip
        start, end = seen["head"]["start"], seen["head"]["end"]
        norms = {name.rpartition(".")[0] for name in start if name.endswith("running_mean")}
        weights = {n: t for n, t in start.items() if n.startswith("backbone.")
                   and t.is_floating_point() and "running" not in n}  # fmt: skip
        of_norms = {n: t for n, t in weights.items() if n.rpartition(".")[0] in norms}
        others = {n: t for n, t in weights.items() if n not in of_norms}
        print(
            f"1 frozen, batchnorm={policy}: BatchNorm's running_mean moved by "
            f"{moved(start, end, 'running_mean'):.3g}, its weight and bias by "
            f"{moved(of_norms, end):.3g}, all others by {moved(others, end):.3g}"
        )
        print(f"2 frozen, batchnorm={policy}: train and eval output differ by "
              f"{seen['head']['gap']:.3g}, with stochastic depth in the backbone")  # fmt: skip
    seen, _ = train(
        folder / "again", images, *TWO_STAGES, "+stage.again={train_from: head, epochs: 1}",
        "allow_refreeze=true", "optimizer=adamw",
    )  # fmt: skip
    start, end = seen["again"]["start"], seen["again"]["end"]
    apart = moved(start, end, "backbone")
    print(f"1 frozen again after an unfreeze: weights and statistics moved by {apart:.3g}")


def unfrozen_layers(folder, images):
    seen, classifier = train(folder / "unfrozen", images, *TWO_STAGES)
    top = seen["top"]
    names = [name for name, _ in classifier.named_parameters()]
    intended = {n for n in names if n.startswith(("backbone.blocks.stage4.",
                                                  "backbone.blocks.conv5.", "head."))}  # fmt: skip
    changed = {n for n in names if not torch.equal(top["start"][n], top["end"][n])}
    print(
        f"3 after the unfreeze from stage4 on, a rate for each block: "
        f"{len(top['learning'])} of {len(names)} tensors have requires_grad, intended "
        f"{len(intended)}, the same: {top['learning'] == intended}; "
        f"of these did not move: {len(intended - changed)}; of the others moved: "
        f"{len(changed - intended)}"
    )
    head = {n: t for n, t in seen["head"]["start"].items() if n.startswith("head.")}
    alone = {n: seen["head"]["end"][n] for n in head}
    print(
        f"7 the head moved by {moved(head, alone):.3g} before the unfreeze, "
        f"by {moved(alone, top['start']):.3g} at it"
    )


def schedulers(folder, images):
    for name in ("constant", "cosine", "one_cycle", "plateau"):
        seen, _ = train(
            folder / name, images, "stage=gradual", "stage.unfreeze.epochs=1", f"scheduler={name}"
        )
        print(f"4 {name} over {len(seen) - 1} unfreezes: runs")


def resume(folder, images):
    command = [sys.executable, "-m", "tlx.train"]
    settings = [*SETTINGS, *TWO_STAGES, f"data.root={images}"]
    whole, killed = folder / "whole", folder / "killed"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*command, *settings, f"hydra.run.dir={whole}"], check=True, **quiet)
    process = subprocess.Popen([*command, *settings, f"hydra.run.dir={killed}"], **quiet)
    while process.poll() is None and not (killed / "checkpoints/top/last.ckpt").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    was_finished = (killed / "metrics.json").exists()
    subprocess.run([*command, f"resume={killed}"], check=not was_finished, **quiet)
    a, b = (load_file(path / "model/model.safetensors") for path in (whole, killed))
    stages = [json.loads((path / "metrics.json").read_text())["stages"] for path in (whole, killed)]
    counts = [stage[1]["trainable_parameters"] for stage in stages]
    files = ("model/model.safetensors", "predictions/val.csv", "predictions/test.csv")
    same = all((whole / name).read_bytes() == (killed / name).read_bytes() for name in files)
    print(
        "5 unfrozen after epoch 1 of 4, killed after epoch 2 and resumed, dropout, augmentation "
        f"and shuffling: {counts[1]} parameters learn (whole run {counts[0]}); the end is "
        f"{moved(a, b):.3g} from the whole run's; weights and predictions byte for byte: {same}"
        f"{' (the kill came too late)' if was_finished else ''}"
    )


def two_processes(folder, images):
    place = folder / "two"
    command = [sys.executable, __file__, "two", str(place), str(images)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for stage, when in (("head", "before"), ("top", "three epochs after")):
        first, second = (torch.load(place / f"{stage}-{rank}.pt") for rank in (0, 1))
        weights = {name: t for name, t in first.items() if "running" not in name}
        print(f"6 two processes, {when} the unfreeze: their weights differ by "
              f"{moved(weights, second):.3g}")  # fmt: skip


SITUATIONS = {
    "1": frozen_layers, "2": frozen_layers, "3": unfrozen_layers, "4": schedulers, "5": resume,
    "6": two_processes, "7": unfrozen_layers,
}  # fmt: skip

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    run.StagedUnfreezing = Watched
    if sys.argv[1:2] == ["two"]:  # one of the processes that `two_processes` starts
        Watched.folder = Path(sys.argv[2])
        train(Watched.folder, Path(sys.argv[3]), *TWO_STAGES, "trainer=ddp")
        sys.exit()
    print(f"tlx {tlx.__version__}, lightning {lightning.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as temporary:
        make_images(Path(temporary) / "images")
        for measure in dict.fromkeys(SITUATIONS[number] for number in sys.argv[1:] or SITUATIONS):
            measure(Path(temporary), Path(temporary) / "images")
