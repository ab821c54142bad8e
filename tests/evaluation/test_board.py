"""What is in a run's event files and the Projector's, read back as TensorBoard reads them."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from sklearn.metrics import precision_score, recall_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.projector import ProjectorConfig
from torch import nn

from tlx.composition import compose
from tlx.config import parse
from tlx.data.manifest import Manifest, Sample
from tlx.evaluation.board import write_board
from tlx.evaluation.captured import kept_features
from tlx.evaluation.prediction_file import Predictions
from tlx.files import write_json
from tlx.models.heads import Head
from tlx.models.preprocess import Preprocess

CLASSES = ("blue", "green", "red")
PREPROCESS = Preprocess.for_weights("resnet18", image_size=32)


@pytest.fixture
def manifest(image_folder):
    samples = [
        Sample(f"{label}/{number}.png", label, "train" if number < 5 else "test", "", "0")
        for label in CLASSES for number in range(8)
    ]  # fmt: skip
    return Manifest.of(image_folder, samples)


def probabilities(n, classes):
    rows = np.random.default_rng(0).random((n, classes))
    return rows / rows.sum(axis=1, keepdims=True)


def config(*overrides):
    return parse(compose(["data=folder", "data.root=x", *overrides]))


def finished(run, manifest, splits=("test",)):
    """A run's folder as training and evaluation leave it, for write_board."""
    metrics = {"stages": [{"steps": 30}, {"steps": 12}]}
    for split in splits:
        samples = manifest.split(split)
        found = probabilities(len(samples), len(manifest.classes))
        paths, labels = [s.path for s in samples], [s.label for s in samples]
        output = run / "predictions" / f"{split}.csv"
        Predictions(paths, labels, found, manifest.classes).write(output)
        metrics[split] = {"n": len(samples), "accuracy": 0.5, "loss": 1.25, "notes": []}
    write_json(run / "metrics.json", metrics)
    return run


def events(run):
    return EventAccumulator(str(run), {"images": 0, "tensors": 0}).Reload()


def test_a_row_of_the_hparams_page(manifest, tmp_path):
    run = finished(tmp_path / "run", manifest)
    hydra = run / ".hydra/overrides.yaml"
    hydra.parent.mkdir()
    hydra.write_text("- backbone=resnet18\n- optimizer.lr=3e-4\n")
    write_board(
        run,
        config("backbone=resnet18", "optimizer.lr=3e-4", "seed=7"),
        manifest,
        PREPROCESS,
        pictures=True,
    )
    found = events(run)
    content = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    values = {k: v.string_value or v.number_value for k, v in start.hparams.items()}
    assert values["backbone"] == "resnet18"
    assert values["stages"] == "head 8 → top 3"
    assert (values["lr"], values["seed"], values["epochs"]) == (3e-4, 7, 11)
    assert values["command"] == "backbone=resnet18 optimizer.lr=3e-4"
    content = found.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert {info.name for info in experiment.hparam_infos} == set(values)
    tags = {info.name.tag for info in experiment.metric_infos}
    assert {"results/val/accuracy", "results/test/accuracy"} <= tags
    assert [(e.step, e.value) for e in found.Scalars("results/test/accuracy")] == [(42, 0.5)]
    assert metadata.SESSION_END_INFO_TAG in found.Tags()["tensors"]
    assert not list(run.glob("*/events*"))  # no second run beside it


def test_images_and_curves_of_the_test_split(manifest, tmp_path):
    run = finished(tmp_path, manifest)
    write_board(run, config("augment=light"), manifest, PREPROCESS, pictures=True)
    found = events(run)
    assert set(found.Tags()["images"]) == {
        "data/classes", "data/class_shares", "data/examples", "data/augmented",
        "test/confusion_matrix", "test/mistakes",
    }  # fmt: skip
    files = {path.stem for path in (run / "figures").glob("*.png")}
    assert files == {tag.replace("/", "_") for tag in found.Tags()["images"]}
    for tag in found.Tags()["images"]:
        (image,) = found.Images(tag)
        assert (image.step, image.width > 300, image.height > 200) == (42, True, True)
    assert {t for t in found.Tags()["tensors"] if t.startswith("test/")} == {
        "test/blue", "test/green", "test/red"
    }  # fmt: skip
    (event,) = found.Tensors("test/green")
    curve = np.array(event.tensor_proto.float_val or [], dtype=np.float32)
    if not curve.size:
        curve = np.frombuffer(event.tensor_proto.tensor_content, dtype=np.float32)
    _, _, _, _, precision, recall = curve.reshape(6, -1)
    samples = manifest.split("test")
    truth = np.array([s.label == "green" for s in samples])
    scores = probabilities(len(samples), 3)[:, 1]
    threshold = 50  # of the 127 of the curve, which are at n / 126
    predicted = scores >= threshold / 126
    assert precision[threshold] == pytest.approx(precision_score(truth, predicted), abs=1e-6)
    assert recall[threshold] == pytest.approx(recall_score(truth, predicted), abs=1e-6)


def test_of_two_classes_there_is_one_curve_and_val_serves_where_test_was_left_alone(
    image_folder, tmp_path
):
    samples = [
        Sample(f"{label}/{number}.png", label, "train" if number < 5 else "val", "", "0")
        for label in ("blue", "red") for number in range(8)
    ]  # fmt: skip
    manifest = Manifest.of(image_folder, samples)
    for positive, tag in ((None, "val/red"), ("blue", "val/blue")):
        run = finished(tmp_path / tag, manifest, splits=("val",))
        write_board(
            run,
            config(*([f"positive={positive}"] if positive else [])),
            manifest,
            PREPROCESS,
            pictures=True,
        )
        found = events(run)
        assert {t for t in found.Tags()["tensors"] if t.startswith("val/")} == {tag}
        assert "val/confusion_matrix" in found.Tags()["images"]


def test_the_projectors_files_load_and_fit_each_other(manifest, tmp_path):
    run = finished(tmp_path, manifest)
    features = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)  # of 9 images
    np.save(run / "predictions/test_features.npy", features)
    write_board(run, config(), manifest, PREPROCESS, pictures=True)
    written = (run / "projector_config.pbtxt").read_text()
    (embedding,) = text_format.Parse(written, ProjectorConfig()).embeddings
    tensors = np.loadtxt(run / embedding.tensor_path, delimiter="\t")
    np.testing.assert_allclose(tensors, features, rtol=1e-4)
    with (run / embedding.metadata_path).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    samples = manifest.split("test")[:7]
    assert [(r["label"], r["path"]) for r in rows] == [(s.label, s.path) for s in samples]
    assert {r["predicted"] for r in rows} <= set(CLASSES)
    sprite = Image.open(run / embedding.sprite.image_path)
    across, down = embedding.sprite.single_image_dim
    assert sprite.size == (3 * across, 3 * down)  # 7 thumbnails in 3 columns
    colour = np.asarray(sprite)[24, 24 + 48].astype(int)  # the second one, which is blue
    assert np.abs(colour - (30, 60, 220)).max() <= 30


def test_what_is_no_longer_there_is_left_out(manifest, tmp_path):
    """No test split, no features, images that were moved, a label with a tab in it."""
    run = finished(tmp_path / "a", manifest, splits=())
    write_board(
        run,
        config(),
        Manifest(tmp_path / "moved", manifest.classes, manifest.samples),
        PREPROCESS,
        pictures=True,
    )
    assert events(run).Tags()["images"] == ["data/classes", "data/class_shares", "data/examples"]
    assert not (run / "projector_config.pbtxt").exists()

    odd = [Sample(f"{n}.png", label, "test", "", "0") for n, label in enumerate(["a\tb", "c"])]
    run = finished(tmp_path / "b", Manifest.of(tmp_path, odd))
    np.save(run / "predictions/test_features.npy", np.eye(2, dtype=np.float32))
    write_board(run, config(), Manifest.of(tmp_path, odd), PREPROCESS, pictures=True)
    rows = (run / "projector/test/metadata.tsv").read_text().splitlines()
    assert [len(row.split("\t")) for row in rows] == [4, 4, 4]


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 7, 5)])  # a map, and tokens
def test_features_are_what_the_head_pools_of_the_first_images(shape, tmp_path):
    torch.manual_seed(0)
    batches = torch.randn(shape).split([2, 4])
    model = SimpleNamespace(head=nn.Identity())
    with kept_features(model, tmp_path / "kept.npy", limit=5):  # the second batch has it
        for batch in batches:
            model.head(batch)
    model.head(batches[0])  # no longer
    pool = Head(shape[1:] if len(shape) == 4 else (7, 5), 2, pool="avg", hidden=(),
                activation="relu", dropout=0.0).pool  # fmt: skip
    expected = pool(torch.cat(batches)[:5]).flatten(1)
    found = torch.from_numpy(np.load(tmp_path / "kept.npy"))
    torch.testing.assert_close(found, expected)
