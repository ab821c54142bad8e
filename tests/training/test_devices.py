"""Several processes train as one, and the precision follows the hardware."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tlx.composition import compose
from tlx.config import parse
from tlx.errors import UserError
from tlx.evaluation.results import compute_of
from tlx.training import devices, plan
from tlx.training import run as run_module
from tlx.training.job import prepare
from tlx.training.run import train_stages

SETTINGS = [
    "backbone=squeezenet1_1", "backbone.weights=null", "data=folder", "data.image_size=48",
    "data.batch_size=4", "data.val=0.21", "data.test=0.12", "stage.head.epochs=2",
    "stage.top.epochs=2", "stage.top.lr=1e-3", "optimizer=sgd", "verbosity=plain", "report=none",
    "monitor=accuracy", "trainer.precision=32",
]  # fmt: skip


def train(folder, image_folder, *arguments, name=("tlx.train",)):
    command = [
        sys.executable, "-m", *name, *SETTINGS, f"data.root={image_folder}",
        f"hydra.run.dir={folder}", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = load_file(folder / "model/model.safetensors")
    return weights, json.loads((folder / "metrics.json").read_text()), done


@pytest.mark.slow
@pytest.mark.parametrize(("cache", "name"), [("on", ("tlx.train",)), ("off", ("tlx", "train"))])
def test_two_processes_equal_one_with_the_same_batch(image_folder, tmp_path, cache, name):
    one, metrics_of_one, _ = train(tmp_path / "one", image_folder, "trainer=cpu", f"cache={cache}")
    two, metrics_of_two, done = train(
        tmp_path / "two", image_folder, "trainer=ddp", f"cache={cache}", name=name
    )
    assert done.stdout.count("Stage head") == 1  # only the first process speaks
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], atol=1e-5, rtol=0)
    assert metrics_of_one["val"]["accuracy"] == metrics_of_two["val"]["accuracy"]
    for a, b in zip(metrics_of_one["stages"], metrics_of_two["stages"], strict=True):
        assert (a["best"], a["best_epoch"], a["steps"]) == (b["best"], b["best_epoch"], b["steps"])


RANKS = """
import hashlib, sys
from pathlib import Path
from lightning.pytorch.utilities import rank_zero_only
from tlx.composition import compose
from tlx.config import parse
from tlx.training import run
from tlx.training.job import prepare

run.load_weights = lambda path, classifier: None  # keep what this process has itself
job = prepare(parse(compose(sys.argv[2:])), Path(sys.argv[1]))
results = run.train_stages(job)
state = {f"rank {rank_zero_only.rank}": hashlib.sha256(
    b"".join(p.detach().numpy().tobytes() for p in job.model.classifier.parameters())
).hexdigest()}
print(state, [(r.best, r.steps) for r in results], flush=True)
"""


@pytest.mark.slow
def test_processes_that_torchrun_starts_agree_bit_for_bit(image_folder, tmp_path):
    """With augmentation, dropout and BatchNorm learning, for which each sees other images."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    settings = [
        "backbone=shufflenet_v2_x0_5", *SETTINGS[1:], "trainer=ddp", "augment=light",
        "head.hidden=[8]", "head.dropout=0.5", "stage.top.batchnorm_learning=trainable",
        "stage.top.hand_over=last", f"data.root={image_folder}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", script]
    done = subprocess.run(
        [*command, tmp_path, *settings], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = dict(re.findall(r"'rank (\d)': '(\w{64})'", done.stdout))  # lines may run together
    assert set(said) == {"0", "1"}
    assert said["0"] == said["1"]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2  # one a stage, from rank 0


SHARING = """
import os, sys, time
from pathlib import Path
from tlx.composition import compose
from tlx.config import parse
from tlx.training import features, run
from tlx.training.job import is_first_process, prepare

folder, (features.PART_ROWS, wrote, forward) = Path(sys.argv[1]), (4, 0, features.Source.forward)
most = 0

def meet(moment):
    (folder / f"{moment} {is_first_process()}").touch()
    while len(list(folder.glob(f"{moment} *"))) < 2:
        time.sleep(0.01)

def together(source, images, cuts):  # nobody is ready before the other one has begun
    meet("begun")
    time.sleep(0.02)
    global wrote, most
    wrote, most = wrote + len(images), max(most, len(images))
    return forward(source, images, cuts)

job = prepare(parse(compose(sys.argv[2:])), folder)
features.Source.forward = together
results = run.train_stages(job)
line = f"wrote {wrote} {results[0].cached} at once {most}\\n"
sys.stdout.write(line)  # in one piece, as the other process writes there too
sys.stdout.flush()
meet("ended")  # the first process holds what the other needs to end its fit
"""


@pytest.mark.slow
def test_processes_share_the_extraction(image_folder, tmp_path):
    script = tmp_path / "sharing.py"
    script.write_text(SHARING)
    settings = [*SETTINGS, "trainer=ddp", "trainer.devices=2", "cache=on",
                f"data.root={image_folder}"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, script, tmp_path, *settings], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wrote = [int(n) for n in re.findall(r"wrote (\d+) True", done.stdout)]
    assert len(wrote) == 2, done.stdout + done.stderr
    first, second = wrote
    splits = [line.split(",")[2] for line in (tmp_path / "manifest.csv").read_text().splitlines()]
    shapes = 2 + 1  # of the first and of the second stage, in both processes
    assert first > shapes < second
    assert first + second == 2 * shapes + splits.count("train") + splits.count("val")
    at_once = [int(n) for n in re.findall(r"at once (\d+)", done.stdout)]
    assert max(at_once) == 2  # half a batch, as in training; one may find only a part's last row


FAILING = """
import os, sys
from tlx import train
from tlx.errors import UserError
from tlx.training.module import StageModule

step = StageModule.training_step

def training_step(self, batch, index):
    if self.global_rank == 1 and index == 1:
        raise UserError("a picture of mine is damaged")
    return step(self, batch, index)

StageModule.training_step = training_step
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_an_error_in_one_process_ends_them_all(image_folder, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    settings = [*SETTINGS, "trainer=ddp", "cache=off", f"data.root={image_folder}",
                f"hydra.run.dir={tmp_path}/run"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, script, *settings], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("tlx: a picture of mine is damaged") == 1


def test_evaluation_takes_no_more_at_once_than_training_does():
    config = parse(compose(["trainer=ddp", "data.batch_size=5"]))  # of two processes
    assert compute_of(config, "32").batch_size == 3


def test_half_precision_is_for_gpus():
    spec = parse(compose(["trainer=cpu", "trainer.precision=16-mixed"])).trainer
    with pytest.raises(UserError, match="trainer.precision=16-mixed is for GPUs"):
        devices.check_devices(spec)


def test_each_process_has_a_val_image(image_folder, tmp_path):
    settings = [*SETTINGS, "trainer=ddp", "trainer.devices=50", f"data.root={image_folder}"]
    with pytest.raises(UserError, match=r"\d+ val images are too few for 50 processes"):
        prepare(parse(compose(settings)), tmp_path)


def test_a_trial_of_a_sweep_is_one_process(monkeypatch):
    spec = parse(compose(["trainer=ddp"])).trainer
    with pytest.raises(UserError, match="set trainer.devices=1"):
        devices.check_sweep(spec)
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun's
    devices.check_sweep(spec)


def test_batchnorm_is_synchronised_on_gpus_only():
    spec = parse(compose(["trainer=ddp", "trainer.sync_batchnorm=true"])).trainer
    with pytest.raises(UserError, match="sync_batchnorm=true needs GPUs"):
        devices.check_devices(spec)


@pytest.mark.parametrize(("device", "found"), [("cpu", "g[+][+]"), ("cuda", "gcc or clang")])
def test_compiling_takes_a_compiler(monkeypatch, device, found):
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=f"compiler, and {found}"):
        devices._check_compiler(device)


@pytest.mark.parametrize("setting", ["trainer.clip=1.0", "trainer.precision=16-mixed"])
def test_a_gpus_fused_optimizer_goes_without_clipping(monkeypatch, setting):
    for module in (plan, devices):
        monkeypatch.setattr(module, "choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    fused = ["+optimizer.fused=true", "+optimizer.capturable=true"]  # the second for GPUs alone
    with pytest.raises(UserError, match="fused=true goes neither with trainer.clip"):
        plan.check(parse(compose([*fused, setting])))
    plan.check(parse(compose(fused)))


@pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
def test_freed_memory_is_kept_for_the_next_tensor():
    """Counted by the system: pages that it had to give anew."""
    script = """
import resource, sys, torch
from tlx.training.devices import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.set_num_threads(1)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64, 1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", script, mode], capture_output=True,
                                 text=True, check=True).stdout)
        for mode in ("kept", "given back")
    }  # fmt: skip
    assert 10 * faults["kept"] < faults["given back"]


def test_no_process_is_started_where_nothing_is_left_to_train(image_folder, tmp_path, monkeypatch):
    settings = [*SETTINGS, "trainer=cpu", f"data.root={image_folder}"]
    run = prepare(parse(compose(settings)), tmp_path)
    started = []
    monkeypatch.setattr(run_module, "start_processes", lambda *_: started.append(1))
    results = train_stages(run)
    assert len(started) == 2
    assert train_stages(run) == results
    assert len(started) == 2
