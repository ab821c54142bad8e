"""The real commands, from a folder of images to a run and what can be done with it."""

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx.reference import ReferenceEvaluator
from PIL import Image
from safetensors.torch import load_file
from sklearn.metrics import f1_score, log_loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import squeezenet1_1

from tlx import __main__, compare, evaluate, predict, summary, train
from tlx.commands import command, file_to_write
from tlx.errors import UserError
from tlx.evaluation import results
from tlx.files import locked
from tlx.models.backbones import build_backbone

SMALL = [
    "backbone=shufflenet_v2_x0_5", "backbone.weights=null", "data=folder", "data.image_size=32",
    "data.batch_size=4", "stage.head.epochs=2", "stage.top.epochs=2", "stage.top.lr=1e-3",
    "trainer=cpu", "trainer.precision=32", "verbosity=plain", "report=none",
]  # fmt: skip


def run_train(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tlx.train", *arguments])
    train.main(list(arguments))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_folder):
    """One run for all tests of this file, and the photographs it had."""
    images, folder = (
        make_folder(tmp_path_factory.mktemp("images")),
        tmp_path_factory.mktemp("run") / "run",
    )
    with pytest.MonkeyPatch.context() as patch:
        run_train(patch, *SMALL, f"data.root={images}", f"hydra.run.dir={folder}")
    return folder, images


@pytest.fixture
def finished(trained, image_folder, tmp_path):
    """A copy of that run, on photographs of its own."""
    folder = shutil.copytree(trained[0], tmp_path / "run")
    config = folder / ".hydra/config.yaml"
    config.write_text(config.read_text().replace(str(trained[1]), str(image_folder)))
    return folder


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_train_leaves_the_whole_run(finished, image_folder):
    names = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert {
        ".hydra/config.yaml", "manifest.csv", "metrics.json", "train.log",
        "predictions/val.csv", "predictions/test.csv", "model/model.json",
        "model/model.safetensors", "checkpoints/head/weights.safetensors",
        "checkpoints/head/last.ckpt", "checkpoints/top/weights.safetensors",
    } <= names  # fmt: skip
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth"))]

    metrics = json.loads((finished / "metrics.json").read_text())
    head, top = metrics["stages"]
    assert (head["train_from"], top["train_from"]) == ("head", "conv5")
    assert (head["epochs"], top["epochs"]) == (2, 2)
    assert head["trainable_parameters"] == 1024 * 3 + 3
    assert top["trainable_parameters"] == 192 * 1024 + 2 * 1024 + 1024 * 3 + 3
    assert (head["cached"], top["cached"]) == (True, True)

    manifest = read_csv(finished / "manifest.csv")
    assert sorted(row["split"] for row in manifest).count("test") == 5  # 24 × 0.2, rounded
    rows = read_csv(finished / "predictions/test.csv")
    assert list(rows[0]) == ["path", "label", "predicted", "blue", "green", "red"]
    truth = {row["path"]: row["label"] for row in manifest if row["split"] == "test"}
    assert {row["path"]: row["label"] for row in rows} == truth
    probabilities = [[float(row[name]) for name in ("blue", "green", "red")] for row in rows]
    assert all(abs(sum(p) - 1) < 1e-6 for p in probabilities)

    # metrics.json against scikit-learn, from the predictions file
    labels, predicted = [r["label"] for r in rows], [r["predicted"] for r in rows]
    test = metrics["test"]
    assert test["n"] == 5
    assert test["accuracy"] == sum(a == b for a, b in zip(labels, predicted, strict=True)) / 5
    assert test["macro_f1"] == pytest.approx(
        f1_score(labels, predicted, average="macro", zero_division=0)
    )
    expected = log_loss(labels, probabilities, labels=["blue", "green", "red"])
    assert test["loss"] == pytest.approx(expected, rel=1e-6)


def test_tensorboard_has_one_step_axis_over_the_stages(finished):
    events = EventAccumulator(str(finished)).Reload()
    tags = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
        "lr/head",
        "lr/conv5",
    } <= tags
    steps = [event.step for event in events.Scalars("val/loss")]
    assert steps == [4, 8, 12, 16]  # 14 images in batches of 4, two epochs a stage
    assert "stage/text_summary" in events.Tags()["tensors"]
    assert [event.step for event in events.Tensors("stage/text_summary")] == [0, 8]
    first_rate = events.Scalars("lr/conv5")[0].step
    assert first_rate > 8


def test_frozen_blocks_keep_every_bit(finished, image_folder):
    torch.manual_seed(0)
    start = build_backbone("shufflenet_v2_x0_5", image_size=32).state_dict()
    after = load_file(finished / "model/model.safetensors")
    moved = {
        key.split(".")[1] for key, value in start.items()
        if not torch.equal(value, after[f"backbone.{key}"])
    }  # fmt: skip
    assert moved == {"conv5"}


def test_evaluate_says_the_same_again(finished, capsys):
    before = json.loads((finished / "metrics.json").read_text())
    predictions = (finished / "predictions/test.csv").read_text()
    evaluate.main([f"run={finished}"])
    assert json.loads((finished / "metrics.json").read_text()) == before
    assert (finished / "predictions/test.csv").read_text() == predictions
    assert f"{before['test']['accuracy']:.4f}" in capsys.readouterr().out


def test_predict_needs_the_model_folder_alone(finished, image_folder, tmp_path):
    alone = (finished / "model").rename(tmp_path / "elsewhere")
    output = tmp_path / "out.csv"
    predict.main([f"run={alone}", f"images={image_folder}", f"output={output}"])
    rows = {row["path"]: row for row in read_csv(output)}
    assert len(rows) == 24
    for row in read_csv(finished / "predictions/test.csv"):
        assert rows[row["path"]]["predicted"] == row["predicted"]
        assert float(rows[row["path"]]["red"]) == pytest.approx(float(row["red"]), abs=1e-6)


def test_predict_names_what_it_cannot_use(finished, image_folder, tmp_path, capsys):
    (image_folder / "red/broken.png").write_bytes(b"no picture")
    for arguments, message in [
        ([f"run={finished}", "images=nowhere"], "no such file or folder: nowhere"),
        ([f"run={finished}", f"images={image_folder}"], "broken.png"),
        ([f"run={tmp_path}", f"images={image_folder}"], "no trained model"),
        ([f"images={image_folder}"], "run is not given"),
        ([f"run={finished}", f"images={image_folder}", "tta=two"], "tta=two: give a whole number"),
        (["run=x", "images=x", "ouput=y"], "unknown argument 'ouput'. Did you mean output"),
    ]:
        with pytest.raises(SystemExit) as stop:
            predict.main(
                [*arguments, *([] if "ouput=y" in arguments else [f"output={tmp_path}/o"])]
            )
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    skipped = [f"run={finished}", f"images={image_folder}", f"output={tmp_path}/o", "on_error=skip"]
    predict.main(skipped)
    assert len(read_csv(tmp_path / "o")) == 24
    skipped[1] = f"images={image_folder}/red/broken.png"
    with pytest.raises(SystemExit):
        predict.main(skipped)
    assert "broken.png can be read" in capsys.readouterr().err
    assert len(read_csv(tmp_path / "o")) == 24  # as it was


def test_a_run_is_not_trained_over_where_its_folder_is_a_reference(
    finished, image_folder, tmp_path, monkeypatch, capsys
):
    run = shutil.copytree(finished, tmp_path / "shufflenet_v2_x0_5")
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run_train(monkeypatch, *SMALL, f"data.root={image_folder}",
                  f"hydra.run.dir={tmp_path}/${{backbone.name}}", "seed=7")  # fmt: skip
    assert stop.value.code == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (run / "metrics.json").read_bytes() == before


def test_a_run_is_never_overwritten(finished, image_folder, monkeypatch, capsys):
    config = (finished / ".hydra/config.yaml").read_text()
    arguments = [*SMALL, f"data.root={image_folder}", f"hydra.run.dir={finished}", "seed=7"]
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments)
    assert "holds a run already" in capsys.readouterr().err
    assert (finished / ".hydra/config.yaml").read_text() == config
    with pytest.raises(SystemExit):
        run_train(monkeypatch, f"resume={finished}")
    assert "is finished" in capsys.readouterr().err


def test_the_cache_changes_nothing(finished, image_folder, tmp_path, monkeypatch):
    other = tmp_path / "uncached"
    run_train(
        monkeypatch, *SMALL, f"data.root={image_folder}", f"hydra.run.dir={other}", "cache=off"
    )
    metrics = json.loads((other / "metrics.json").read_text())
    assert [stage["cached"] for stage in metrics["stages"]] == [False, False]
    cached, uncached = (load_file(f / "model/model.safetensors") for f in (finished, other))
    for key, value in cached.items():
        torch.testing.assert_close(value, uncached[key], atol=1e-5, rtol=1e-5)


def test_cached_features_give_the_predictions_that_images_give(finished):
    assert json.loads((finished / "metrics.json").read_text())["stages"][-1]["cached"]
    for split in ("val", "test"):
        before = (finished / f"predictions/{split}.csv").read_bytes()
        evaluate.main([f"run={finished}", f"split={split}"])
        assert (finished / f"predictions/{split}.csv").read_bytes() == before


def test_so_do_those_of_mirror_images_cut_inside_a_block(image_folder, tmp_path, monkeypatch):
    mirrors = [
        "cache=on",
        "stage.top.train_from=stage4.2",
        "tta=4",
        "augment.horizontal_flip=true",
        "augment.vertical_flip=true",
    ]
    run_train(
        monkeypatch, *SMALL, *mirrors, f"data.root={image_folder}", f"hydra.run.dir={tmp_path}/run"
    )
    assert json.loads((tmp_path / "run/metrics.json").read_text())["stages"][-1]["cached"]
    before = (tmp_path / "run/predictions/test.csv").read_bytes()
    evaluate.main([f"run={tmp_path}/run", "split=test"])
    assert (tmp_path / "run/predictions/test.csv").read_bytes() == before

    said = {}
    for tta in ("as evaluated", "4", "1"):
        predict.main([
            f"run={tmp_path}/run/model", f"images={image_folder}", f"output={tmp_path}/all.csv",
            *[f"tta={tta}"] * tta.isdigit(),
        ])  # fmt: skip
        said[tta] = {row["path"]: row for row in read_csv(tmp_path / "all.csv")}
    assert said["as evaluated"] == said["4"] != said["1"]
    for row in read_csv(tmp_path / "run/predictions/test.csv"):
        assert float(said["4"][row["path"]]["red"]) == pytest.approx(float(row["red"]), abs=1e-8)


def test_a_cache_that_cannot_hold_a_split_is_done_without(
    trained, image_folder, tmp_path, monkeypatch
):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results, "split_features", full)
    run_train(monkeypatch, *SMALL, f"data.root={image_folder}", f"hydra.run.dir={tmp_path}/run")
    for split in ("val", "test"):
        assert (
            f"The cache cannot hold {split}: [Errno 28]" in (tmp_path / "run/train.log").read_text()
        )
        found = (tmp_path / f"run/predictions/{split}.csv").read_bytes()
        assert found == (trained[0] / f"predictions/{split}.csv").read_bytes()


def test_the_programs_of_the_documentation(trained, tmp_path, monkeypatch):
    run, images = trained
    picture = next(images.rglob("*.png"))
    shutil.copy(picture, tmp_path / "picture.jpg")  # by its contents it is a PNG
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs/results.md").read_text("utf-8")
    first, second = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(first.replace("outputs/DATE/TIME", str(run)), names)
    predict.main([f"run={run}", f"images={tmp_path}/picture.jpg", "output=p.csv", "tta=1"])
    (row,) = read_csv(tmp_path / "p.csv")
    assert names["shown"] == pytest.approx({c: float(row[c]) for c in names["model"].classes})

    exec(second, names)
    several = torch.cat([names["images"].flip(3).mul(k) for k in range(3)])
    graph = ReferenceEvaluator("model.onnx")
    (logits,) = graph.run(None, {"images": several.numpy()})
    with torch.inference_mode():
        assert torch.from_numpy(logits).allclose(names["model"].classifier(several), atol=1e-4)


def test_a_sweep_leaves_the_test_images_alone(image_folder, tmp_path, monkeypatch):
    arguments = [
        "-m", *SMALL, "stage=head", "stage.head.epochs=1", "optimizer.lr=1e-3,1e-2",
        f"data.root={image_folder}", f"hydra.sweep.dir={tmp_path}/sweep",
    ]  # fmt: skip
    run_train(monkeypatch, *(a for a in arguments if not a.startswith("stage.top")))
    trials = sorted((tmp_path / "sweep").glob("*/metrics.json"))
    assert len(trials) == 2
    for trial in trials:
        assert set(json.loads(trial.read_text())) == {
            "val", "stages", "seconds", "temperature", "environment"
        }  # fmt: skip
        (trial.parent / "metrics.json").rename(trial.parent / "kept.json")
        train.main([f"resume={trial.parent}"])  # still a trial
        assert not (trial.parent / "predictions/test.csv").exists()
        assert re.fullmatch(r"[01]_optimizer.lr=0.01?|[01]_optimizer.lr=0.001", trial.parent.name)
    moved = shutil.copytree(trials[0].parent, tmp_path / "moved")
    (moved / "metrics.json").unlink()
    train.main([f"resume={moved}"])
    assert not (moved / "predictions/test.csv").exists()


def test_a_sweep_that_is_begun_again_goes_on(image_folder, tmp_path, monkeypatch, capsys):
    sweep = tmp_path / "sweep"
    arguments = [
        "-m", *(a for a in SMALL if not a.startswith("stage.top")), "stage=head",
        "stage.head.epochs=1", f"data.root={image_folder}", f"hydra.sweep.dir={sweep}",
    ]  # fmt: skip
    run_train(monkeypatch, *arguments, "seed=0,1")
    begun = sweep / "1_seed=1"
    (begun / "metrics.json").unlink()
    before = {path: path.read_bytes() for path in (sweep / "0_seed=0").rglob("*") if path.is_file()}
    weights = (begun / "checkpoints/head/weights.safetensors").stat().st_mtime_ns
    run_train(monkeypatch, *arguments, "seed=0,1,2")
    assert {path for path, old in before.items() if path.read_bytes() != old} <= {
        sweep / "0_seed=0/train.log"
    }
    assert (begun / "metrics.json").is_file()
    assert (begun / "checkpoints/head/weights.safetensors").stat().st_mtime_ns == weights
    assert (sweep / "2_seed=2/metrics.json").is_file()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments, "seed=0,1", "optimizer.lr=0.5")
    assert "0_seed=0 holds a trial with other settings" in capsys.readouterr().err
    config = sweep / "0_seed=0/.hydra/config.yaml"
    assert config.read_bytes() == before[config]


def test_a_trial_that_cannot_be_leaves_the_others_and_no_run_is_overwritten(
    image_folder, tmp_path, monkeypatch, capsys
):
    """Swept over weights, whose paths have slashes: a trial lies deeper than its name says."""
    good, also = tmp_path / "good.pth", tmp_path / "also.pth"
    for path in (good, also):
        torch.save(squeezenet1_1().state_dict(), path)
    arguments = [
        "-m", *(a for a in SMALL if not a.startswith(("stage.top", "backbone"))), "stage=head",
        "stage.head.epochs=1", "backbone=squeezenet1_1", f"data.root={image_folder}",
        f"backbone.weights={tmp_path}/none.pth,{good},{also}", f"hydra.sweep.dir={tmp_path}/sweep",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        run_train(monkeypatch, *arguments)
    assert stop.value.code == 2
    assert "none.pth" in capsys.readouterr().err
    metrics, _ = (tmp_path / "sweep").rglob("metrics.json")
    before = metrics.read_bytes()
    assert "test" not in json.loads(before)
    compare.main([str(tmp_path / "sweep"), "split=val"])
    assert "val" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments, "seed=1")
    assert "holds a trial with other settings" in (metrics.parent / "train.log").read_text()
    assert metrics.read_bytes() == before
    metrics.rename(metrics.parent / "kept.json")
    train.main([f"resume={metrics.parent}"])
    assert not (metrics.parent / "predictions/test.csv").exists()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["backbone=vgg16", "data.image_size=150", "head=mlp", "loss=binary", "num_classes=2",
             "stage=head"],
            (16_812_353, 2_097_665, 14_714_688),
        ),
        (
            ["backbone=vgg16", "data.image_size=299", "head=mlp", "num_classes=5", "stage=head",
             "stage.head.train_from=block5"],
            (25_333_061, 17_697_797, 7_635_264),
        ),
        (
            ["backbone=resnet50", "num_classes=10", "stage=head"],
            (23_528_522, 20_490, 23_508_032),
        ),
    ],
)  # fmt: skip
def test_summary_counts(overrides, expected, capsys):
    summary.main([*overrides, "format=json"])
    table = json.loads(capsys.readouterr().out)
    assert (table["total"], table["trainable"], table["frozen"]) == expected
    blocks = table["stages"][-1]["blocks"]
    assert sum(block["total"] for block in blocks) == expected[0]


def test_summary_shows_a_table(capsys):
    summary.main(["backbone=squeezenet1_1", "data=folder", "num_classes=3"])
    shown = capsys.readouterr().out
    assert "fire9" in shown
    assert "724,035" in shown  # 722,496 in the blocks and 513 × 3 in the head


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage.top.train_from=conv6"], "unknown train_from 'conv6'. Did you mean .*conv5"),
        (["data.root=???"], r"data.root is not given; add data.root=… to the command."),
        (["data.root=/nowhere/at/all"], "data.root=/nowhere/at/all: no such folder"),
        (["backbone=inception_v3"], "image_size=32 is too small for inception_v3.*at least"),
        (["trainer=gpu"], "this machine has no GPU"),
        (["trainer=auto", "trainer.devices=2"], "trainer.devices=2: this machine has no GPU"),
        (["loss=binary"], "loss=binary is for 2 classes, not 3"),
        (["positive=rd"], "threshold and positive are for 2 classes, not 3"),
        (["threshold=recall"], "threshold=recall is not valid"),
        (["tta=3"], "tta"),
        (["data.fold=5", "data.folds=5"], "fold"),
        (["trainer.accumulate=9"], "accumulate=9 is more than the 4 batches of an epoch; give 4"),
        (["optimizer=sgd", "+optimizer.momentun=0.5"], "momentun"),
        (["backbone.weights=/nowhere/w.pth"], "/nowhere/w.pth"),
        (["head.activation=softmax"], "head.allow_softmax=true"),
        (["hydra.run.dir=/dev/null/run"], "/dev/null"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_anything_is_trained(  # noqa: PLR0917
    image_folder, tmp_path, monkeypatch, capsys, overrides, message
):
    given = {"data.root": str(image_folder), "hydra.run.dir": f"{tmp_path}/run"}
    arguments = [*SMALL, *(f"{k}={v}" for k, v in given.items()), *overrides]
    keys = [argument.split("=")[0] for argument in arguments]
    last = [a for i, a in enumerate(arguments) if keys[i] not in keys[i + 1 :]]
    with pytest.raises(SystemExit) as stop:
        run_train(monkeypatch, *last)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("tlx: ")
    assert re.search(message, error, re.DOTALL), error
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_the_folder_that_another_process_has(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    with locked(run / ".lock", ""), pytest.raises(SystemExit):
        run_train(monkeypatch, *SMALL, f"data.root={tmp_path}/none", f"hydra.run.dir={run}")
    assert "no such folder" in capsys.readouterr().err
    assert (run / ".lock").exists()


def test_a_refused_run_leaves_nothing_of_one_that_was_killed_before_it_trained(
    tmp_path, monkeypatch
):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("precision.json", "cache.json"):
        (run / name).write_text("{}")
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *SMALL, f"data.root={tmp_path}/none", f"hydra.run.dir={run}")
    assert not run.exists()


def test_a_truncated_image_is_fatal_or_skipped_by_name(image_folder, tmp_path, monkeypatch, capsys):
    victim = image_folder / "green/3.png"
    victim.write_bytes(victim.read_bytes()[:200])
    arguments = [*SMALL, f"data.root={image_folder}"]
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *arguments, f"hydra.run.dir={tmp_path}/a")
    assert "green/3.png" in capsys.readouterr().err
    run_train(monkeypatch, *arguments, "data.on_error=skip", f"hydra.run.dir={tmp_path}/b",
              "trainer.limit_epochs=1")  # fmt: skip
    assert "green/3.png" not in (tmp_path / "b/manifest.csv").read_text()
    assert "green/3.png" in (tmp_path / "b/train.log").read_text()


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_resume_ends_as_if_nothing_had_been(
    finished, image_folder, tmp_path
):
    folder = tmp_path / "interrupted"
    command = [sys.executable, "-m", "tlx.train"]
    arguments = [*SMALL, f"data.root={image_folder}", f"hydra.run.dir={folder}", "cache=off"]
    process = subprocess.Popen(
        [*command, *arguments], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (folder / "checkpoints/head/last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"resume={folder}" in error
    assert "Traceback" not in error
    resumed = subprocess.run([*command, f"resume={folder}"], capture_output=True, text=True,
                             check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert resumed.returncode == 0, resumed.stderr
    a, b = (json.loads((f / "metrics.json").read_text())["test"] for f in (finished, folder))
    assert b["accuracy"] == a["accuracy"]
    assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)  # `finished` trained on cached features


def test_what_ends_a_run_before_its_end_says_how_to_go_on(
    image_folder, tmp_path, monkeypatch, capsys
):
    arguments = [*SMALL, f"data.root={image_folder}", f"hydra.run.dir={tmp_path}/run"]

    def fail(*arguments, **settings):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("tlx.conclusion.finish", fail)
        with pytest.raises(RuntimeError) as found:
            run_train(monkeypatch, *arguments)
    (note,) = getattr(found.value, "__notes__", [f"resume={tmp_path}/run"])  # from Python 3.11 on
    assert f"resume={tmp_path}/run" in note

    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tlx.conclusion.write_board", stop)
        with pytest.raises(SystemExit):
            run_train(monkeypatch, f"resume={tmp_path}/run")
    assert f"To go on: python -m tlx.report run={tmp_path}/run" in capsys.readouterr().err


def test_processes_that_a_launcher_starts_share_a_folder(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun's
    with pytest.raises(SystemExit):
        run_train(monkeypatch, *SMALL, "data.root=.")
    assert "add hydra.run.dir=DIR" in capsys.readouterr().err


def test_where_a_file_goes_is_known_before_it_is_made(tmp_path, monkeypatch):
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    os.mkfifo(tmp_path / "pipe")
    assert file_to_write(f"{tmp_path}/link.csv") == tmp_path / "real.csv"
    for name in ("pipe", "", "nowhere/x.csv"):
        with pytest.raises(UserError, match="cannot be written"):
            file_to_write(f"{tmp_path}/{name}")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=f"{tmp_path} is read-only"):
        file_to_write(f"{tmp_path}/x.csv")


def test_what_the_machine_refuses_is_said(capsys):
    @command()
    def main(number):
        raise OSError(number, os.strerror(number), "/here/x")

    for number, said in (
        (errno.EACCES, "tlx: /here/x: Permission denied."),
        (errno.ENOSPC, "tlx: /here/x: No space left on device."),
    ):
        with pytest.raises(SystemExit):
            main(number)
        assert capsys.readouterr().err.strip() == said
    with pytest.raises(FileNotFoundError):  # a fault of tlx's, with its traceback
        main(errno.ENOENT)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_screen_cannot_show_are_shown_escaped(encoding, monkeypatch):
    @command()
    def main():
        print("caf\udce9.jpg: é")

    screen = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    main()
    shown = screen.buffer.getvalue().decode(encoding)
    assert shown == {"utf-8": "caf\\udce9.jpg: é\n", "ascii": "caf\\udce9.jpg: \\xe9\n"}[encoding]


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_output_that_nobody_reads_to_its_end_ends_the_command(length):
    program = (
        "import sys; from tlx.commands import command\n"
        "@command()\n"
        f"def main(): sys.stdin.read(); print('x' * {length})\n"
        "main()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(60) == 141


def test_another_pipe_that_breaks_is_a_fault(capsys):
    @command()
    def main():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main()


def test_a_file_of_a_run_is_no_run(finished, capsys):
    for name in ("manifest.csv", "model/model.json"):
        with pytest.raises(SystemExit):
            predict.main([f"run={finished / name}", f"images={finished}"])
        assert f"{name} is a file; a model is in a folder" in capsys.readouterr().err


def test_test_images_without_labels_are_predicted(image_folder, tmp_path, monkeypatch):
    rows = ["path,label,split"]
    for place in sorted(image_folder.rglob("*.png")):
        number, label = int(place.stem), place.parent.name
        split = ("train", "train", "val", "test")[number % 4]
        label = "" if split == "test" else label
        rows.append(f"{place.relative_to(image_folder)},{label},{split}")
    (image_folder / "table.csv").write_text("\n".join(rows))
    arguments = [a for a in SMALL if not a.startswith(("data=", "stage."))]
    arguments += ["data=csv", f"data.table={image_folder}/table.csv", "stage=head",
                  "stage.head.epochs=1", f"hydra.run.dir={tmp_path}/run"]  # fmt: skip
    run_train(monkeypatch, *arguments)
    assert len(read_csv(tmp_path / "run/predictions/test.csv")) == 6
    assert "no image of test has a label" in (tmp_path / "run/findings.json").read_text()
    assert "accuracy" not in json.loads((tmp_path / "run/metrics.json").read_text())["test"]


def test_an_unknown_command_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tlx", "trian"])
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert stop.value.code == 2
    assert "unknown command 'trian'. Did you mean train" in capsys.readouterr().err


def test_every_command_has_a_readable_help(capsys):
    for module in (evaluate, predict, summary):
        with pytest.raises(SystemExit) as stop:
            module.main(["--help"])
        assert stop.value.code == 0
        assert f"python -m {module.__name__}" in capsys.readouterr().out


def test_images_that_changed_their_form_still_predict(finished, tmp_path):
    """Greyscale, alpha and palette pictures are made RGB as in training."""
    for mode in ("L", "RGBA", "P"):
        Image.new(mode, (40, 50)).save(tmp_path / f"{mode}.png")
    output = tmp_path / "forms.csv"
    folder = tmp_path / "forms"
    folder.mkdir()
    for mode in ("L", "RGBA", "P"):
        (tmp_path / f"{mode}.png").rename(folder / f"{mode}.png")
    predict.main([f"run={finished}", f"images={folder}", f"output={output}"])
    assert [Path(row["path"]).stem for row in read_csv(output)] == ["L", "P", "RGBA"]
