"""A finished run in which nothing is wrong, and the same run with one thing made wrong."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from planted import (
    OVERFITTED,
    answer_always,
    change,
    plant_curves,
    read_rows,
    write_rows,
)
from safetensors.torch import load_file
from torch.utils.tensorboard import SummaryWriter

from tlx.diagnosis.after import CHEAP, FULL, examine_run, tell_after
from tlx.diagnosis.findings import Finding, as_json
from tlx.diagnosis.predictions import files_and_manifest
from tlx.diagnosis.run_folder import RunFolder


def first(run: Path) -> Finding:
    """What is named first, and that nothing else is above a note."""
    found = examine_run(run)
    assert not found.not_examined
    worse = [finding for finding in found.findings if finding.severity != "note"]
    assert len({finding.cause for finding in worse}) == 1, worse
    return worse[0]


def test_what_is_advised_can_be_pasted(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "my run")
    given = ["data=folder", "data.root='my photos/set one'"]
    (run / ".hydra/overrides.yaml").write_text(yaml.safe_dump(given))
    found = RunFolder(run)
    assert shlex.split(found.overrides) == given
    assert shlex.split(found.place) == [str(run)]


def test_a_healthy_run(trained: Path) -> None:
    found = examine_run(trained)
    assert [finding for finding in found.findings if finding.severity != "note"] == []
    assert found.not_examined == ()
    assert len(found.examined) == len(CHEAP) + len(FULL)
    assert json.loads((trained / "metrics.json").read_text())["test"]["accuracy"] > 0.9


# ---- rows ----


@pytest.mark.parametrize(("shift", "said"), [(16, "the row 16 further up"), (-5, "5 further down")])
def test_predictions_of_another_batch(run: Path, shift: int, said: str) -> None:
    """The write-up's fault: labels of one batch beside the predictions of another."""
    path = run / "predictions/test.csv"
    header, *rows = read_rows(path)
    moved = [row[:2] + rows[(i + shift) % len(rows)][2:] for i, row in enumerate(rows)]
    write_rows(path, [header, *moved])
    finding = first(run)
    assert finding.cause == "wrong_rows"
    assert said in finding.evidence
    assert finding.numbers["wrong"] >= 8


def test_a_class_called_path(run: Path) -> None:
    path = run / "predictions/test.csv"
    header, *rows = read_rows(path)
    write_rows(path, [[*header[:-1], "path"], *rows])
    assert list(files_and_manifest(RunFolder(run))) == []


def test_shuffled_predictions(run: Path) -> None:
    path = run / "predictions/val.csv"
    header, *rows = read_rows(path)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    write_rows(path, [header, *(row[:2] + rows[i][2:] for row, i in zip(rows, order, strict=True))])
    finding = first(run)
    assert finding.cause == "wrong_rows"
    assert finding.evidence.startswith("predictions/val.csv")
    assert finding.evidence.endswith("the rows are shuffled")
    assert finding.fix.endswith("split=val")


def test_predictions_of_another_model(run: Path) -> None:
    path = run / "predictions/test.csv"
    header, *rows = read_rows(path)
    write_rows(path, [header, *([*row[:3], "0.5", "0.25", "0.25"] for row in rows)])
    finding = first(run)
    assert (finding.cause, finding.numbers["wrong"]) == ("wrong_rows", 12)
    assert finding.evidence.endswith("another model made this file")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [*rows, rows[3]], "1 occur more than once (test/blue/3.png)"),
        (lambda rows: rows[:-2], "2 are missing (test/red/18.png)"),
        (lambda rows: [[], *rows[:-1]], "1 are missing (test/red/19.png)"),  # a blank line is none
        (lambda rows: [["x.png", *rows[0][1:]], *rows[1:]], "1 are no image of the split (x.png)"),
        (
            lambda rows: [[rows[0][0], "red", *rows[0][2:]], *rows[1:]],
            "1 have another label than in manifest.csv (test/blue/0.png)",
        ),
    ],
)
def test_rows_that_are_not_the_splits(
    run: Path, change: Callable[[list[list[str]]], list[list[str]]], said: str
) -> None:
    path = run / "predictions/test.csv"
    header, *rows = read_rows(path)
    write_rows(path, [header, *change(rows)])
    finding = first(run)
    assert finding.cause == "wrong_rows"
    assert said in finding.evidence


def test_a_row_that_was_cut(run: Path) -> None:
    path = run / "predictions/test.csv"
    *rows, last = read_rows(path)
    write_rows(path, [*rows, last[:1]])
    found = examine_run(run)
    assert found.findings[0].cause == "wrong_rows"
    assert {"has 1 values instead of 6" in missed.why for missed in found.not_examined} == {True}


def test_other_order_of_the_classes(run: Path) -> None:
    path = run / "model/model.json"
    model = json.loads(path.read_text())
    model["classes"] = ["red", "green", "blue"]
    path.write_text(json.dumps(model))
    finding = examine_run(run).findings[0]
    assert finding.cause == "class_order"
    assert "model/model.json has the classes in the order red, green, blue" in finding.evidence


# ---- one class ----


def test_one_class_for_everything(run: Path) -> None:
    answer_always(run, "green")
    finding = first(run)
    assert (finding.cause, finding.severity) == ("one_class", "error")
    assert finding.numbers == {
        "n": 120, "predicted": 120, "labelled": 40, "accuracy": 1 / 3, "majority": 1 / 3,
    }  # fmt: skip


def test_one_class_that_is_most_of_the_labels_is_no_finding(run: Path) -> None:
    """All of 20 predicted as the class that 20 have: that is right, not blind."""
    rows = {s: read_rows(run / f"predictions/{s}.csv") for s in ("val", "test")}
    manifest = read_rows(run / "manifest.csv")
    for split, (header, *images) in rows.items():
        green = [row for row in images if row[1] == "green"]
        write_rows(run / f"predictions/{split}.csv", [header, *green])
    gone = {r[0] for (_, *images) in rows.values() for r in images if r[1] != "green"}
    write_rows(run / "manifest.csv", [row for row in manifest if row[0] not in gone])
    assert "one_class" not in {finding.cause for finding in examine_run(run, quick=True).findings}


# ---- what was logged ----


@pytest.fixture
def events(run: Path) -> Iterator[Callable[[str, int, float], None]]:
    """Writes a scalar beside those of the run."""
    writer = SummaryWriter(str(run))
    yield lambda tag, step, value: (writer.add_scalar(tag, value, step), writer.flush())[0]
    writer.close()


def test_overfitting_and_when_it_began(run: Path) -> None:
    plant_curves(run, *OVERFITTED)
    (finding,) = [f for f in examine_run(run).findings if f.cause == "overfitting"]
    assert finding.severity == "note"  # the best epoch's weights are those that were kept
    assert finding.numbers == pytest.approx(
        {"epoch": 4, "val_best": 0.5, "val_last": 0.8, "train_best": 0.5, "train_last": 0.1}
    )
    assert finding.evidence.startswith("stage top: from epoch 4 on val loss rises")

    output = run.parent / "found.json"
    (finding,) = [f for f in examine_run(run, output=output).findings if f.picture]
    assert finding.picture == str(run.parent / "found_overfitting.png")
    with Image.open(finding.picture) as picture:
        assert picture.size[0] > 600

    config = run / ".hydra/config.yaml"
    config.write_text(config.read_text().replace("hand_over: best", "hand_over: last"))
    finding = first(run)
    assert (finding.cause, finding.severity) == ("overfitting", "warning")
    assert finding.fix == "stage.top.hand_over=best stage.top.patience=3"


@pytest.mark.parametrize(
    ("train_loss", "val_loss"),
    [
        ([0.9, 0.7, 0.5, 0.3, 0.2, 0.1], [0.8, 0.6, 0.5, 0.51, 0.52, 0.53]),  # chance
        ([0.9, 0.7, 0.5, 0.6, 0.7, 0.8], OVERFITTED[1]),  # diverging, not learning by heart
        ([0.9, 0.7, 0.5, 0.3], [0.8, 0.6, 0.5, 0.9]),  # one bad epoch
    ],
)
def test_no_overfitting(run: Path, train_loss: list[float], val_loss: list[float]) -> None:
    plant_curves(run, train_loss, val_loss)
    assert "overfitting" not in {finding.cause for finding in examine_run(run).findings}


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([2.3 - 0.001 * epoch for epoch in range(40)], "far too low"),
        ([2.3 - 0.001 * epoch for epoch in range(20)], ""),  # of 60 steps: short, not slow
        ([2.3 - 0.04 * epoch for epoch in range(40)], ""),
        ([40.0 - 0.9 * epoch for epoch in range(40)], "far too high"),
        ([2.3, 3.1] * 20, "far too high"),
    ],
)
def test_losses_that_stay_above_that_of_guessing(run: Path, losses: list[float], said: str) -> None:
    """Of three classes 1.10."""
    plant_curves(run, losses, losses)
    found = [f for f in examine_run(run, quick=True).findings if f.cause == "learning_rate"]
    assert [f.evidence[-len(said) :] for f in found] == [said] * bool(said)
    assert all(f.fix == "stage.head.lr=find stage.top.lr=find" for f in found)


@pytest.mark.parametrize(
    ("val_loss", "epochs"),
    [
        ([0.9, 0.7, 0.5, 0.45], 2),
        ([0.9, 0.7, 0.5, 0.49], 2),  # hardly less
        ([0.9, 0.7, 0.4, 0.45, 0.42], 2),  # was lower
        ([0.9, 0.7, 0.5, 0.45], 5),  # not over yet
    ],
)
def test_a_training_that_ended_while_it_helped(
    run: Path, val_loss: list[float], epochs: int
) -> None:
    plant_curves(run, val_loss, val_loss)
    config = run / ".hydra/config.yaml"
    text = config.read_text()
    assert text.count("epochs: 2") == 1
    config.write_text(text.replace("epochs: 2", f"epochs: {epochs}"))
    found = [f for f in examine_run(run).findings if f.cause == "still_improving"]
    if (val_loss[-1], epochs) != (0.45, 2):
        assert found == []
        return
    (finding,) = found
    assert finding.severity == "note"
    assert finding.evidence == (
        "stage top ended with the lowest val loss of its 4 epochs, 0.450, after 0.500 1 before it"
    )
    assert finding.fix == "stage.top.epochs=4"


def test_what_is_found_of_a_run_that_ended_joins_what_was_found_before(run: Path, caplog) -> None:
    caplog.set_level("WARNING")
    caplog.clear()
    before = [Finding("leak", "note", "one copy", "exclude it")]
    (run / "findings.json").write_text(json.dumps({"findings": [], "doctor": as_json(before)}))
    answer_always(run, "red")
    tell_after(run)
    answer_always(run, "blue")
    tell_after(run)
    found = json.loads((run / "findings.json").read_text("utf-8"))
    assert found["findings"] == []
    assert [f["cause"] for f in found["doctor"]] == ["one_class", "leak"]  # the worst first
    assert found["doctor"][0]["evidence"].startswith("'blue'")
    assert found["doctor"][1]["evidence"] == "one copy"
    assert [record.message[:16] for record in caplog.records] == ["one_class: 'red'"]  # not twice


def test_a_loss_that_became_nan(run: Path, events) -> None:
    events("train/loss_step", 2, float("inf"))
    events("gradient_norm/head", 4, float("nan"))
    finding = first(run)
    assert (finding.cause, finding.numbers) == ("not_finite", {"step": 2})
    assert "train/loss_step is inf at step 2" in finding.evidence
    assert finding.fix.startswith("stage.top.lr=0.0001, ")


def test_gradients_that_explode(run: Path, events) -> None:
    events("gradient_norm/fire9", 29, 1e6)
    finding = first(run)
    assert (finding.cause, finding.numbers["step"]) == ("gradients", 29)
    assert "the gradient of fire9 explodes: its norm is 1e+06 at step 29" in finding.evidence


def test_gradients_that_vanish(run: Path, events) -> None:
    for step in range(100, 140):
        events("gradient_norm/head", step, 1.0)
        events("gradient_norm/fire9", step, 1e-8)
    finding = first(run)
    assert finding.cause == "gradients"
    assert finding.numbers["share"] == pytest.approx(1e-8)


# ---- weights ----


@pytest.mark.parametrize(("stage", "block"), [("head", "fire2"), ("top", "fire8")])
def test_a_frozen_block_that_moved(run: Path, stage: str, block: str) -> None:
    """By one bit of one number."""
    path = run / "checkpoints" / stage / "weights.safetensors"
    weights = load_file(path)
    name = next(k for k in weights if f".{block}." in k and k.endswith("weight"))
    old = weights[name].flatten()[0].item()
    change(
        path, name, lambda t: t.flatten()[:1].copy_(torch.tensor([old]).nextafter(torch.ones(1)))
    )
    finding = first(run)
    assert finding.cause == "frozen_moved"
    assert f"stage {stage} froze" in finding.evidence
    assert f"first {name.removeprefix('backbone.blocks.')}" in finding.evidence
    assert 0 < finding.numbers["largest"] < 1e-6


def test_nan_in_saved_weights(run: Path) -> None:
    path = run / "model/model.safetensors"
    for block in ("fire9", "fire4"):
        name = next(k for k in load_file(path) if f".{block}." in k)
        change(path, name, lambda t: t.flatten()[:2].fill_(float("nan")))
    finding = examine_run(run).findings[0]
    assert (finding.cause, finding.numbers) == ("not_finite", {"tensors": 2, "values": 4})
    assert "model/model.safetensors" in finding.evidence
    assert ".fire4." in finding.evidence
    assert re.match(r"stage\.\w+\.lr=\S+, trainer.clip=1.0 or", finding.fix)  # the last stage's


def test_an_input_that_is_not_the_weights(run: Path) -> None:
    path = run / "model/model.json"
    model = json.loads(path.read_text())
    model["preprocess"] |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    path.write_text(json.dumps(model))
    finding = examine_run(run).findings[0]
    assert (finding.cause, finding.severity) == ("input_mismatch", "error")
    assert "0.485" in finding.evidence


# ---- runs that broke off ----


def what_is_missing(run: Path) -> dict[str, str]:
    return {missing.what: missing.why for missing in examine_run(run).not_examined}


def test_a_run_that_was_killed_while_it_trained(run: Path) -> None:
    for folder in ("model", "predictions", "checkpoints/top"):
        shutil.rmtree(run / folder)
    (run / "metrics.json").unlink()
    missing = what_is_missing(run)
    assert set(missing) == {
        "class order", "input of the model", "files and manifest", "predicted again", "one class",
        "few images",
    }  # fmt: skip
    assert "the run did not reach its end" in missing["few images"]
    path = run / "checkpoints/head/weights.safetensors"
    name = next(k for k in load_file(path) if ".fire2." in k)
    change(path, name, lambda t: t.add_(1))
    assert examine_run(run).findings[0].cause == "frozen_moved"


def test_a_run_that_never_began(run: Path) -> None:
    for path in run.iterdir():
        if path.name != ".hydra":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = examine_run(run)
    assert found.findings == found.examined == ()
    assert len(found.not_examined) == len(CHEAP) + len(FULL)


def test_a_checkpoint_of_a_stage_that_ended_no_epoch(run: Path) -> None:
    shutil.rmtree(run / "model")
    for name in ("head", "top"):
        (run / "checkpoints" / name / "weights.safetensors").unlink()
    path = run / "checkpoints/head/last.ckpt"
    state = torch.load(path, weights_only=True)
    next(iter(state["state_dict"].values())).fill_(float("nan"))
    torch.save(state, path)
    finding = examine_run(run).findings[0]
    assert finding.cause == "not_finite"
    assert "checkpoints/head/last.ckpt" in finding.evidence


def test_images_that_are_gone(run: Path, tmp_path: Path) -> None:
    found = examine_run(run, root=tmp_path)
    assert found.findings == examine_run(run, quick=True).findings
    (missing,) = found.not_examined
    assert missing.what == "predicted again"
    assert "does not hold the test images any more" in missing.why
