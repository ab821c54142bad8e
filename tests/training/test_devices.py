"""Several processes train as one, and the precision follows the hardware."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tlx.config import compose, parse
from tlx.training import devices

SETTINGS = [
    "backbone=squeezenet1_1", "backbone.weights=null", "data=folder", "data.image_size=48",
    "data.batch_size=4", "data.val=0.21", "data.test=0.12", "stage.head.epochs=2",
    "stage.top.epochs=2", "stage.top.lr=1e-3", "optimizer=sgd", "trainer.progress=false",
]  # fmt: skip


def train(folder, image_folder, *arguments, launcher=()):
    command = [
        sys.executable, "-m", *launcher, "tlx.train", *SETTINGS, f"data.root={image_folder}",
        f"hydra.run.dir={folder}", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = load_file(folder / "model/model.safetensors")
    return weights, json.loads((folder / "metrics.json").read_text()), done


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["on", "off"])
def test_two_processes_equal_one_with_the_same_batch(image_folder, tmp_path, cache):
    one, metrics_of_one, _ = train(tmp_path / "one", image_folder, "trainer=cpu", f"cache={cache}")
    two, metrics_of_two, done = train(
        tmp_path / "two", image_folder, "trainer=ddp", f"cache={cache}"
    )
    assert done.stdout.count("Stage head") == 1  # only the first process speaks
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-5, rtol=0)
    assert metrics_of_one["val"]["accuracy"] == metrics_of_two["val"]["accuracy"]
    for a, b in zip(metrics_of_one["stages"], metrics_of_two["stages"], strict=True):
        assert (a["best"], a["best_epoch"], a["steps"]) == (b["best"], b["best_epoch"], b["steps"])


@pytest.mark.slow
def test_torchrun_launches_too(image_folder, tmp_path):
    launcher = ["torch.distributed.run", "--nproc-per-node=2", "-m"]
    _, metrics, _ = train(
        tmp_path / "run", image_folder, "trainer=ddp", "trainer.limit_epochs=1", launcher=launcher
    )
    assert metrics["val"]["n"] == 5
    assert len(list((tmp_path / "run").glob("events.out.tfevents.*"))) == 2  # one a stage


def test_auto_precision_is_bf16_only_where_the_processor_is_fast_at_it(monkeypatch):
    spec = parse(compose(["trainer=cpu"])).trainer
    for flags, precision in [
        ({"avx2", "fma"}, "32"), ({"avx512f", "avx512_bf16"}, "bf16-mixed"),
        ({"amx_bf16"}, "bf16-mixed"), (set(), "32"),
    ]:  # fmt: skip
        monkeypatch.setattr(devices, "_cpu_flags", lambda flags=flags: flags)
        assert devices.choose_precision(spec) == precision
