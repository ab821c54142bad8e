"""A run's end, on an untrained network: what is written must follow from the predictions file."""

import csv
import json

import numpy as np
import pytest
from sklearn import metrics as sk

from tlx.composition import compose
from tlx.config import parse
from tlx.data.manifest import Sample
from tlx.evaluation.calibration import calibrated, fit_temperature, reliability
from tlx.evaluation.prediction_file import nine_digits, read_predictions
from tlx.evaluation.results import finish, write_split
from tlx.models.folder import load_model
from tlx.training.job import prepare

SMALL = [
    "backbone=shufflenet_v2_x0_5", "backbone.weights=null", "data=folder", "data.image_size=32",
    "trainer=cpu", "data.num_workers=0", "data.keep_together=none", "data.val=0.4", "data.test=0.4",
]  # fmt: skip


@pytest.fixture
def two_classes(write_image, tmp_path):
    for index, (name, colour) in enumerate(
        {"dark": (60, 60, 60), "light": (180, 180, 180)}.items()
    ):
        for number in range(20):
            write_image(tmp_path / f"images/{name}/{number}.png", colour, seed=100 * index + number)
    return tmp_path / "images"


def ended(images, folder, *overrides, with_test=True):
    folder.mkdir()
    config = parse(compose([*SMALL, f"data.root={images}", *overrides]))
    job = prepare(config, folder)
    finish(job, [], with_test=with_test, started=0.0)
    return job, json.loads((folder / "metrics.json").read_text())


def test_metrics_are_those_of_the_predictions_file(two_classes, tmp_path, capsys):
    job, metrics = ended(two_classes, tmp_path / "run")
    assert "Classes, on test" in capsys.readouterr().out
    for split in ("val", "test"):
        found = read_predictions(job.folder / f"predictions/{split}.csv", job.model.classes)
        labels = np.array([job.model.classes.index(label) for label in found.labels])
        ours, scores = metrics[split], found.probabilities[:, 1]
        expected = {
            "accuracy": sk.accuracy_score(found.labels, found.predicted),
            "macro_f1": sk.f1_score(found.labels, found.predicted, average="macro"),
            "loss": sk.log_loss(labels, found.probabilities),
            "roc_auc": sk.roc_auc_score(labels, scores),
            "average_precision": sk.average_precision_score(labels, scores),
            "brier": sk.brier_score_loss(labels, scores),
            "ece": reliability(found.probabilities, labels).ece,
        }
        assert {key: ours[key] for key in expected} == pytest.approx(expected, rel=0, abs=1e-9)
        report = (job.folder / f"predictions/{split}_report.txt").read_text()
        names = list(job.model.classes)
        assert report == sk.classification_report(
            found.labels, found.predicted, labels=names, digits=4, zero_division=0
        )


def test_temperature_and_threshold_come_from_val_alone(two_classes, tmp_path):
    aim = "threshold=recall:0.9"
    job, metrics = ended(two_classes, tmp_path / "run", aim, "positive=dark")
    _, without_test = ended(two_classes, tmp_path / "other", aim, "positive=dark", with_test=False)
    for key in ("temperature", "threshold"):
        assert metrics[key] == without_test[key]
    model = load_model(job.folder / "model")
    assert model.temperature == metrics["temperature"]
    assert metrics["threshold"] == {
        "positive": "dark", "threshold": model.decision.threshold, "aim": "recall:0.9",
        "reached": metrics["val"]["per_class"]["dark"]["recall"],
    }  # fmt: skip
    for split in ("val", "test"):
        found = read_predictions(job.folder / f"predictions/{split}.csv", model.classes)
        above = found.probabilities[:, 0] >= model.decision.threshold
        assert [name == "dark" for name in found.predicted] == above.tolist()
    assert metrics["val"]["per_class"]["dark"]["recall"] >= 0.9

    val = read_predictions(job.folder / "predictions/val.csv", model.classes)
    labels = np.array([model.classes.index(label) for label in val.labels])
    assert model.temperature == fit_temperature(val.probabilities, labels)
    if model.temperature is not None:
        test = read_predictions(job.folder / "predictions/test.csv", model.classes)
        mended = calibrated(test.probabilities, model.temperature)
        labels = np.array([model.classes.index(label) for label in test.labels])
        assert metrics["test"]["ece_calibrated"] == reliability(mended, labels).ece
    assert "ece_calibrated" not in metrics["val"]


def test_a_split_without_images_is_left_out_and_said(image_folder, tmp_path, caplog):
    _, metrics = ended(image_folder, tmp_path / "run", "data.test=0")
    assert "test" not in metrics
    assert "No test images" in caplog.text
    assert metrics["val"]["n"] > 0


def test_images_without_a_label_are_left_out_and_said(two_classes, tmp_path):
    job, _ = ended(two_classes, tmp_path / "run")
    samples = [Sample("a.png", "dark", "test", "", ""), Sample("b.png", "", "test", "", "")]
    probabilities = np.array([[0.8, 0.2], [0.3, 0.7]])
    metrics = write_split(tmp_path, "test", job.model, samples, probabilities, positive=None)
    assert (metrics["n"], metrics["accuracy"]) == (1, 1.0)
    assert metrics["notes"][-1] == "1 images without a label are left out."
    with (tmp_path / "predictions/test.csv").open() as file:
        assert [row["predicted"] for row in csv.DictReader(file)] == ["dark", "light"]
    nothing = write_split(
        tmp_path, "test", job.model, samples[1:], probabilities[1:], positive=None
    )
    assert list(nothing) == ["n", "notes"]


def test_nine_digits_are_what_the_file_holds():
    values = np.random.default_rng(0).random((200, 3)) ** 12
    values[0] = [0.0, 1.0, 1e-320]
    expected = np.array([[float(f"{value:.9g}") for value in row] for row in values])
    np.testing.assert_allclose(nine_digits(values), expected, rtol=1e-15, atol=1e-308)
