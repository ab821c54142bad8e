"""python -m tlx.evaluate: again, and on a run that was interrupted before its evaluation."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from tlx import evaluate, predict, report, train
from tlx.evaluation.calibration import calibrated

SMALL = [
    "backbone=shufflenet_v2_x0_5", "backbone.weights=null", "data=folder", "data.image_size=32",
    "stage=head", "stage.head.epochs=1", "trainer=cpu", "data.num_workers=0",
    "data.keep_together=none", "verbosity=quiet", "report=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_folder):
    images, folder = make_folder(tmp_path_factory.mktemp("images")), tmp_path_factory.mktemp("run")
    arguments = [*SMALL, f"data.root={images}", f"hydra.run.dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tlx.train", *arguments])
        train.main(arguments)
    return folder, images


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "run")


def read(run):
    metrics = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key != "seconds"}


def test_an_interrupted_run_is_made_whole(run):
    before, predictions = read(run), (run / "predictions/test.csv").read_text()
    description = (run / "model/model.json").read_text()
    for folder in ("model", "predictions"):
        shutil.rmtree(run / folder)
    (run / "metrics.json").unlink()
    evaluate.main([f"run={run}"])
    assert read(run) == before
    assert (run / "predictions/test.csv").read_text() == predictions
    assert (run / "model/model.json").read_text() == description
    assert (run / "report.html").exists()

    evaluate.main([f"run={run}", "split=all"])
    after = read(run)
    assert after["all"]["n"] == 24
    assert after["test"] == before["test"]

    (run / "metrics.json").unlink()
    (run / "checkpoints/head/done.json").unlink()
    with pytest.raises(SystemExit):
        evaluate.main([f"run={run}"])
    assert not (run / "metrics.json").exists()


def test_a_run_that_was_to_leave_the_test_images_alone_does(run):
    config = run / ".hydra/config.yaml"
    config.write_text(config.read_text().replace("test: auto", "test: false"))
    (run / "metrics.json").unlink()
    (run / "predictions/test.csv").unlink()
    evaluate.main([f"run={run}", "split=val"])
    assert "test" not in read(run)
    assert not (run / "predictions/test.csv").exists()


def test_an_image_that_changed_is_named(run, trained, tmp_path, capsys):
    images = shutil.copytree(trained[1], tmp_path / "images")
    manifest = (run / "manifest.csv").read_text().splitlines()
    victim = next(row.split(",")[0] for row in manifest if ",test," in row)
    other = next(row.split(",")[0] for row in manifest if ",train," in row)
    shutil.copy(images / other, images / victim)
    with pytest.raises(SystemExit):
        evaluate.main([f"run={run}", f"data.root={images}"])
    assert f"{victim}: changed" in capsys.readouterr().err


def test_an_unknown_split_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.main([f"run={tmp_path}", "split=tset"])
    assert "Did you mean test" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_damaged_model_is_named(run, trained, tmp_path, capsys, name):
    file = run / "model" / name
    file.write_bytes(file.read_bytes()[:100])
    for command, arguments in (
        (predict, [f"run={run}", f"images={trained[1]}", f"output={tmp_path}/out.csv"]),
        (evaluate, [f"run={run}"]),
    ):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert f"{run}/model" in (error := capsys.readouterr().err)
        assert "is damaged" in error
    report.main([f"run={run}", "gradcam=false"])  # of what is there
    file.unlink()
    with pytest.raises(SystemExit):
        predict.main([f"run={run}", f"images={trained[1]}", f"output={tmp_path}/out.csv"])
    assert name in capsys.readouterr().err


def test_pictures_that_were_packed_are_found(run, trained, tmp_path):
    shutil.make_archive(str(tmp_path / "moved"), "zip", trained[1])
    report.main([f"run={run}", f"data.root={tmp_path}/moved.zip"])
    page = (run / "report.html").read_text("utf-8")
    assert "data:image/jpeg" in page


def test_predict_reads_as_the_model_was_trained(run, tmp_path, capsys):
    description = json.loads((run / "model/model.json").read_text())
    description["preprocess"]["icc"] = True
    (run / "model/model.json").write_text(json.dumps(description))
    (tmp_path / "new").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "new/good.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "new/odd.png", icc_profile=b"broken")
    arguments = [f"run={run}", f"images={tmp_path}/new", f"output={tmp_path}/out.csv"]
    predict.main([*arguments, "on_error=skip"])
    assert "odd.png" not in (tmp_path / "out.csv").read_text()
    with pytest.raises(SystemExit):
        predict.main(arguments)
    assert "odd.png" in capsys.readouterr().err


def test_predict_calibrates_on_demand(run, trained, tmp_path, capsys):
    description = json.loads((run / "model/model.json").read_text())
    found = {}
    description["temperature"] = 2.0
    (run / "model/model.json").write_text(json.dumps(description))
    for wanted in ("false", "true"):
        output = tmp_path / f"{wanted}.csv"
        predict.main(
            [f"run={run}", f"images={trained[1]}", f"output={output}", f"calibrated={wanted}"]
        )
        found[wanted] = np.loadtxt(output, delimiter=",", skiprows=1, usecols=(2, 3, 4))
    np.testing.assert_allclose(found["true"], calibrated(found["false"], 2.0), atol=1e-8)
    assert abs(found["true"] - found["false"]).max() > 1e-4

    description["temperature"] = None
    (run / "model/model.json").write_text(json.dumps(description))
    with pytest.raises(SystemExit):
        predict.main([f"run={run}", f"images={trained[1]}", "calibrated=true"])
    assert "no temperature was fitted" in capsys.readouterr().err
