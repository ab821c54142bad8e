"""python -m tlx.compare, on runs' folders written by hand."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from tlx import compare
from tlx.data.manifest import Manifest, Sample
from tlx.evaluation.metrics import evaluate
from tlx.evaluation.prediction_file import Predictions, read_predictions

CLASSES = ("cat", "dog", "owl")


def make_run(folder, *, seed=0, lr=0.1, images=range(30), noise=0):
    """A finished run whose images are numbered; those of the same number are the same."""
    samples = [Sample(f"{i}.png", CLASSES[i % 3], "test", "", f"{i:064x}") for i in images]
    manifest = Manifest.of(folder, samples)
    manifest.write(folder / "manifest.csv")
    labels = np.array([CLASSES.index(sample.label) for sample in manifest.samples])
    rng = np.random.default_rng(noise)
    probabilities = rng.dirichlet(np.ones(3), len(labels)) * 0.6 + 0.4 * np.eye(3)[labels]
    paths, names = zip(*[(s.path, s.label) for s in manifest.samples], strict=True)
    output = folder / "predictions/test.csv"
    Predictions(paths, names, probabilities, CLASSES).write(output)
    metrics = {"test": evaluate(probabilities, labels, CLASSES)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / ".hydra").mkdir()
    (folder / ".hydra/config.yaml").write_text(f"seed: {seed}\noptimizer: {{lr: {lr}}}\n")
    return folder


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_and_a_run_side_by_side(tmp_path, capsys):
    for seed in range(3):
        make_run(tmp_path / f"sweep/{seed}_seed={seed}", seed=seed, noise=seed)
    other = make_run(tmp_path / "other", lr=0.2, noise=9)
    output = tmp_path / "comparison"
    compare.main([str(tmp_path / "sweep"), str(other), f"output={output}"])
    assert "No McNemar" not in capsys.readouterr().out
    runs = read_csv(output / "runs.csv")
    assert [row["run"] for row in runs] == ["0_seed=0", "1_seed=1", "2_seed=2", "other"]
    metrics = json.loads((other / "metrics.json").read_text())["test"]
    assert float(runs[3]["accuracy"]) == metrics["accuracy"]
    assert float(runs[3]["macro_f1_ci95_low"]) == metrics["macro_f1_ci95"][0]
    assert len(read_csv(output / "pairs.csv")) == 6
    (accuracy,) = [r for r in read_csv(output / "seeds.csv") if r["score"] == "accuracy"]
    values = [float(row["accuracy"]) for row in runs[:3]]
    assert float(accuracy["mean"]) == pytest.approx(np.mean(values))
    with Image.open(output / "compare.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 50  # something is drawn


def test_a_run_on_few_images_has_no_interval_of_macro_f1(tmp_path):
    runs = [make_run(tmp_path / "many"), make_run(tmp_path / "few", images=range(12))]
    compare.main([*map(str, runs), f"output={tmp_path / 'comparison'}"])
    many, few = read_csv(tmp_path / "comparison/runs.csv")
    assert float(many["macro_f1_ci95_low"]) < float(many["macro_f1_ci95_high"])
    assert (few["macro_f1_ci95_low"], few["macro_f1_ci95_high"]) == ("", "")


def test_mcnemar_is_refused_on_other_images(tmp_path, capsys):
    first = make_run(tmp_path / "first")
    second = make_run(tmp_path / "second", images=range(1, 31), lr=0.2)
    compare.main([str(first), str(second)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "No McNemar test of first and second: their images differ: 1 only" in printed
    assert "exact test" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "two runs or more"),
        (["{run}", "{run}"], "two runs or more"),
        (["{run}", "{run}/../run"], "two runs or more"),
        (["{run}", "{run}/nothing"], "no metrics.json"),
        (["{run}", "splt=val"], "Did you mean split"),
        (["{run}", "{run}", "split=train"], "unknown split"),
        (["{run}", "{other}", "split=val"], "tlx.evaluate run="),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, arguments, message):
    places = {"run": make_run(tmp_path / "run"), "other": make_run(tmp_path / "other")}
    with pytest.raises(SystemExit) as stop:
        compare.main([argument.format(**places) for argument in arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_unfinished_runs_are_left_out(tmp_path, capsys):
    runs = [make_run(tmp_path / name, seed=i) for i, name in enumerate(("a", "b", "c"))]
    (runs[1] / "metrics.json").unlink()
    compare.main([*map(str, runs), f"output={tmp_path}/out"])
    assert f"Left out: {runs[1]} is not finished." in capsys.readouterr().out
    assert [row["run"] for row in read_csv(tmp_path / "out/runs.csv")] == ["a", "c"]
    compare.main([str(tmp_path)])  # as a sweep's folder
    assert f"Left out: {runs[1]} is not finished." in capsys.readouterr().out


def test_images_without_labels_have_no_results(tmp_path, capsys):
    runs = [make_run(tmp_path / "run"), make_run(tmp_path / "other")]
    (runs[1] / "metrics.json").write_text('{"test": {"n": 0}}')
    with pytest.raises(SystemExit):
        compare.main([*map(str, runs)])
    assert "none of these images has a label" in capsys.readouterr().err


def test_classes_named_by_numbers_have_weights_too(tmp_path, capsys):
    runs = [make_run(tmp_path / "run"), make_run(tmp_path / "other", seed=1)]
    for run in runs:
        with (run / ".hydra/config.yaml").open("a") as file:
            file.write("data: {class_weights: {0: 2.0, few: 1.0}}\n")
    compare.main([*map(str, runs), f"output={tmp_path}/out"])
    assert len(read_csv(tmp_path / "out/seeds.csv"))


def test_predictions_from_another_class_order_are_refused(tmp_path, capsys):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    file = second / "predictions/test.csv"
    file.write_text(file.read_text().replace("predicted,cat,dog", "predicted,dog,cat"))
    with pytest.raises(SystemExit):
        compare.main([str(first), str(second)])
    assert "in this order, cat,dog,owl" in capsys.readouterr().err


def test_the_file_holds_what_was_written(tmp_path):
    probabilities = np.array([[0.25, 0.75], [1e-12, 1.0]])
    path = tmp_path / "predictions.csv"
    Predictions(["a, b.png", "c.png"], ["x", "<y>"], probabilities, ["x", "<y>"]).write(path)
    found = read_predictions(path, ["x", "<y>"])
    assert found.paths == ("a, b.png", "c.png")
    assert found.labels == ("x", "<y>")
    assert found.predicted == ("<y>", "<y>")
    assert found.probabilities.tolist() == probabilities.tolist()
