"""report.html, read as a browser would, from a run's folder made by hand."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from tlx.composition import compose
from tlx.data.manifest import Manifest, Sample
from tlx.data.tta import Views
from tlx.errors import UserError
from tlx.evaluation.examples import confused_pairs, in_turn, mistakes, successes
from tlx.evaluation.finished import Judged, read_run
from tlx.evaluation.history import read_history
from tlx.evaluation.metrics import evaluate
from tlx.evaluation.prediction_file import Predictions
from tlx.evaluation.report import write_report
from tlx.evaluation.sections.data import _distribution, _sizes
from tlx.evaluation.sections.quality import _by_class
from tlx.evaluation.shown import NOTHING, by
from tlx.files import write_json
from tlx.models.decision import Decision
from tlx.models.folder import Architecture, SavedModel, build_classifier, save_model
from tlx.models.preprocess import Preprocess

SECTIONS = ["quality", "failures", "data", "learning", "usage", "reproduction"]


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.images: list[dict[str, str]] = []
        self.sections: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        if tag == "img":
            self.images.append(found)
        if tag == "section":
            self.sections.append(found["id"])
        self.links += [found[name] for name in ("src", "href") if name in found]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", " ".join(self.texts))


def make_run(run, root, classes, *, samples=None, settings=(), **saved):
    """Every fourth image is test; every third of these is predicted wrongly."""
    if samples is None:
        paths = [(p.relative_to(root).as_posix(), p.parent.name) for p in root.rglob("*.png")]
        samples = [
            Sample(path, label, ("test", "val", "train", "train")[i % 4], "", "0" * 64)
            for i, (path, label) in enumerate(sorted(paths))
        ]
    manifest = Manifest.of(root, samples)
    assert set(manifest.classes) == set(classes)
    classes = manifest.classes
    raw = compose(
        [
            "backbone=squeezenet1_1", "data=folder", f"data.root={root}", "data.image_size=64",
            "stage=finetune", "augment.rotation_range=20", *settings,
        ]
    )  # fmt: skip
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(raw), "utf-8")
    overrides = ["backbone=squeezenet1_1", "data.root=it's here"]
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides), "utf-8")
    (run / "train.log").write_text("[x] - weights of squeezenet1_1: V1 (from a file)\n", "utf-8")
    manifest.write(run / "manifest.csv")
    metrics = {"stages": [], "seconds": 300.0, "environment": {"torch": "9.9", "git": None}}
    for split in ("test", "val"):
        chosen = manifest.split(split)
        labels = np.array([classes.index(sample.label) for sample in chosen])
        said = np.where(np.arange(len(labels)) % 3 == 0, (labels + 1) % len(classes), labels)
        probabilities = np.full((len(labels), len(classes)), 0.2 / (len(classes) - 1))
        probabilities[np.arange(len(labels)), said] = 0.8
        names = [sample.label for sample in chosen]
        paths = [sample.path for sample in chosen]
        output = run / "predictions" / f"{split}.csv"
        Predictions(paths, names, probabilities, classes).write(output)
        metrics[split] = evaluate(probabilities, labels, classes)
    write_json(run / "metrics.json", metrics)
    torch.manual_seed(0)
    design = Architecture("squeezenet1_1", 64, len(classes), "avg", (), "relu", 0.0)
    preprocess = Preprocess.for_weights("squeezenet1_1", image_size=64)
    model = SavedModel(build_classifier(design), preprocess, classes, **saved)
    save_model(run / "model", model, design)
    return run


def two_classes(tmp_path, root, **saved):
    """A run for `dark`, the first and rarer of two."""
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.png"))
    samples = [
        Sample(
            path, "light" if i % 4 else "dark", ("test", "test", "val", "train")[i // 4 % 4], "", ""
        )
        for i, path in enumerate(paths)
    ]
    return make_run(
        tmp_path / "run", root, ("dark", "light"), samples=samples, settings=["positive=dark"],
        **saved,
    )  # fmt: skip


def write_events(run):
    with SummaryWriter(str(run)) as writer:
        writer.add_text("stage", "**head** learns from `head` on", 0)
        for epoch, step in enumerate((3, 6, 9)):
            for tag in ("train/loss", "val/loss", "train/accuracy", "val/accuracy"):
                writer.add_scalar(tag, 1 / (epoch + 1), step)
            writer.add_scalar("lr/head", 1e-3, step)
        writer.add_text("stage", "**top** learns from `fire9` on", 6)
        writer.add_scalar("batchnorm_drift_mean/layer1", 0.25, 9)
        writer.add_scalar("batchnorm_drift_mean/stem", 0.0, 9)


@pytest.fixture
def run(tmp_path, image_folder):
    return make_run(tmp_path / "run", image_folder, ("blue", "green", "red"))


def test_the_page_is_whole_and_needs_nothing_else(run):
    write_events(run)
    path = write_report(run, gradcam=True)
    assert path == run / "report.html"
    page = Page(path.read_text("utf-8"))
    assert page.sections == SECTIONS
    assert all(image["src"].startswith("data:image/") for image in page.images)
    assert all(len(image["alt"]) > 10 for image in page.images)
    assert {link.partition(":")[0] if ":" in link else link for link in page.links} <= {
        "data", *(f"#{name}" for name in SECTIONS)
    }  # fmt: skip
    assert not page.tags & {"script", "iframe", "object"}
    # 2 confusions of 6 test images
    assert "66.7\u202f% of unseen images are classified correctly" in page.text
    assert "2 of 6 test images are wrong" in page.text
    assert "python -m tlx.train backbone=squeezenet1_1 'data.root=it'\"'\"'s here'" in page.text
    assert "squeezenet1_1: V1 (from a file)" in page.text
    assert "torch 9.9" in page.text
    assert "git not recorded" in page.text
    kinds = [image["src"].partition(";")[0] for image in page.images]
    # mistakes, what it looks at (2 wrong, 4 right), training images, augmented views
    assert kinds.count("data:image/jpeg") == 2 + 2 + 4 + 12 + 16
    # confusion, ROC, precision-recall, reliability, PCA, bars, pie, loss, accuracy, rates
    assert kinds.count("data:image/svg+xml") == 10
    assert "layer1" in page.text
    assert "0.2500" in page.text


def test_the_areas_of_two_classes_are_those_of_the_curves_class(tmp_path, image_folder):
    run = two_classes(tmp_path, image_folder)
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))  # with the second's areas
    own = [metrics[split]["per_class"]["dark"]["average_precision"] for split in ("test", "val")]
    assert own[0] != metrics["test"]["average_precision"]
    page = Page(write_report(run, gradcam=False).read_text("utf-8"))
    assert f"average precision of dark {own[0]:.3f} {own[1]:.3f}" in page.text
    assert f"dark ({own[0]:.3f})" in " ".join(image["alt"] for image in page.images)
    assert "area under the ROC curve of dark" in page.text


def test_a_threshold_says_what_it_reached_and_is_no_part_of_reliability(tmp_path, image_folder):
    run = two_classes(tmp_path, image_folder, decision=Decision(0, 0.4, "precision:0.9", 0.75))
    page = Page(write_report(run, gradcam=False).read_text("utf-8"))
    assert "for precision:0.9, of which only 0.750 was reached there" in page.text
    assert "its likelier class has 80.0\u202f% on average and is right for" in page.text
    assert "Validation and test images are never augmented" in page.text


def test_means_over_views_are_said_where_the_numbers_are(tmp_path, image_folder):
    run = two_classes(tmp_path, image_folder, views=Views(4))
    page = Page(write_report(run, gradcam=False).read_text("utf-8"))
    assert "judged by its probabilities' mean over 4 views: itself and 3 augmented" in page.text
    assert "predict does that and gives the mean over 4 views" in page.text
    assert "never augmented" not in page.text


def test_alternative_texts_say_the_finding(run):
    page = Page(write_report(run, gradcam=False).read_text("utf-8"))
    told = " ".join(image["alt"] for image in page.images)
    assert "Confusion matrix: 4 of 6 images are on its diagonal" in told
    assert "in truth blue, predicted green 80\u202f%" in told
    assert "brightest where the classifier looked" not in told


def test_labels_are_escaped(tmp_path, image_folder):
    odd = ["<i>a&b</i>", "$x_$", "bell\x07", "猫{{ 1 }}"]
    paths = sorted(p.relative_to(image_folder).as_posix() for p in image_folder.rglob("*.png"))
    samples = [
        Sample(path, odd[i % 4], ("train", "val", "test", "test")[(i // 4) % 4], "", "")
        for i, path in enumerate(paths)
    ]
    run = make_run(tmp_path / "run", image_folder, odd, samples=samples)
    html = write_report(run, gradcam=True).read_text("utf-8")
    assert "<i>a" not in html
    assert "&lt;i&gt;a&amp;b&lt;/i&gt;" in html
    assert "\x07" not in html
    assert "bell\ufffd" in html
    assert "猫{{ 1 }}" in html


MISSING = {
    "metrics.json": "not evaluated yet",
    "predictions": "there is nothing to measure",
    "predictions/test.csv": "There are no results on test images",
    "model": "has no model/ yet",
    "manifest.csv": "has no manifest.csv",
    "train.log": "weights not recorded",
    "images": "no longer where they were",
    ".hydra/overrides.yaml": "python -m tlx.train",
}


@pytest.mark.parametrize(
    "missing",
    [
        ("predictions/test.csv", "images"),
        ("metrics.json", "train.log", ".hydra/overrides.yaml"),
        ("predictions", "model", "manifest.csv"),
    ],
)
def test_what_is_missing_is_said(run, image_folder, missing):
    for name in missing:
        place = image_folder if name == "images" else run / name
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    page = Page(write_report(run, gradcam=True).read_text("utf-8"))
    assert page.sections == SECTIONS
    for name in missing:
        assert MISSING[name] in page.text
    assert "has no TensorBoard events" in page.text


@pytest.mark.parametrize(("backbone", "article"), [("efficientnet_b0", "An"), ("vgg16", "A")])
def test_the_article_fits_the_backbone(run, backbone, article):
    config = run / ".hydra" / "config.yaml"
    config.write_text(config.read_text("utf-8").replace("squeezenet1_1", backbone), "utf-8")
    page = Page(write_report(run, gradcam=False).read_text("utf-8"))
    assert f" {article} {backbone} , pretrained" in page.text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no run's folder"):
        write_report(tmp_path, gradcam=False)


def test_images_that_were_moved_are_found_again(run, image_folder, tmp_path):
    moved = image_folder.rename(tmp_path / "elsewhere")
    assert not read_run(run).has_images
    assert read_run(run, moved).has_images
    page = Page(write_report(run, gradcam=False, data_root=moved).read_text("utf-8"))
    assert "no longer where they were" not in page.text


def test_features_that_evaluation_kept_serve_without_images(run, image_folder):
    shutil.rmtree(image_folder)
    features = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    np.save(run / "predictions" / "test_features.npy", features)
    page = Page(write_report(run, gradcam=True).read_text("utf-8"))
    assert "6 of 6 images by the first two principal components" in page.text
    np.save(run / "predictions" / "test_features.npy", features[:4])  # of a part: not used
    page = Page(write_report(run, gradcam=True).read_text("utf-8"))
    assert "principal components" not in page.text


def test_findings_are_shown(run):
    finding = {"kind": "leak", "severity": "error", "message": "3 <copies>", "paths": [],
               "fix": "data.on_leak=regroup"}  # fmt: skip
    write_json(run / "findings.json", {"findings": [finding]})
    page = Page(write_report(run, gradcam=False).read_text("utf-8"))
    assert "error 3 <copies> data.on_leak=regroup" in page.text
    assert "What the doctor found" not in page.text  # it was not asked

    fault = {"title": "NaN or infinite values", "severity": "warning", "fix": "trainer.clip=1.0"}
    faults = [fault | {"cause": "not_finite", "evidence": "loss is nan"},
              fault | {"cause": "leak", "evidence": "as above"}]  # fmt: skip
    for doctor, said in (faults, "warning NaN or infinite values: loss is nan trainer.clip=1.0"), (
        faults[1:], "What the doctor found Nothing else."
    ):  # fmt: skip
        write_json(run / "findings.json", {"findings": [finding], "doctor": doctor})
        page = Page(write_report(run, gradcam=False).read_text("utf-8"))
        assert said in page.text
        assert "as above" not in page.text


@pytest.mark.slow
def test_1000_classes_stay_readable(tmp_path):
    classes = [f"class {i}" for i in range(1000)]
    samples = [
        Sample(f"{c}/{k}.png", c, split, "", "")
        for c in classes
        for k, split in enumerate(("train", "val", "test"))
    ]
    (tmp_path / "gone").mkdir()
    run = make_run(tmp_path / "run", tmp_path / "gone", classes, samples=samples)
    path = write_report(run, gradcam=True)
    text = Page(path.read_text("utf-8")).text
    assert path.stat().st_size < 1_000_000
    assert "The 60 classes with the lowest F1; 940 others are in metrics.json" in text
    assert "940 smaller classes are left out" in text


def test_a_class_without_images_has_no_recall_and_no_f1():
    known = {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "support": 4}
    absent = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, "recall_ci95": None}
    rows = _by_class({"owl": absent, "cat": known})["rows"]
    assert rows[0] == ("owl", "0", "0.0\u202f%", NOTHING, NOTHING, NOTHING)
    many = {f"cat {i}": known for i in range(60)} | {"owl": absent}
    assert "owl" not in [name for name, *_ in _by_class(many)["rows"]]


def test_sizes_and_counts_are_those_of_the_images(tmp_path):
    samples = [
        Sample(f"{i}.png", "ab"[i % 2], "train", "", "", *size)
        for i, size in enumerate([(50, 100), (100, 50), (50, 100), (100, 50)])
    ]
    manifest = Manifest.of(tmp_path, samples)
    assert _sizes(manifest) == "50 to 100 pixels wide and 50 to 100 high"
    assert _sizes(Manifest.of(tmp_path, samples[::2])) == f"all {by(50, 100)} pixels"
    bars, ring = _distribution(manifest)
    assert bars.alt.endswith("by split: all 2 classes have 2 images.")
    assert "all 2 classes have 2 images" in ring.alt
    many = [Sample(f"{i}.png", f"class {i}", "train", "", "") for i in range(9)]
    assert len(_distribution(Manifest.of(tmp_path, many))) == 1  # the bars alone


def test_history_reads_stages_and_the_later_of_two_values(tmp_path):
    write_events(tmp_path)
    history = read_history(tmp_path)
    assert history.stages == (("head", 0), ("top", 6))
    steps, values = history.series["val/loss"]
    assert steps.tolist() == [3, 6, 9]
    np.testing.assert_allclose(values, [1, 1 / 2, 1 / 3])
    assert history.epochs(np.array([0, 3, 7])).tolist() == [0, 1, pytest.approx(7 / 3)]
    assert history.last("batchnorm_drift_mean/") == {"layer1": 0.25, "stem": 0.0}
    assert read_history(tmp_path / "none").series == {}


def judged() -> Judged:
    predicted = np.array([0, 1, 1, 0, 1, 1])
    probabilities = np.array(
        [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.0, 1.0], [0.1, 0.9]]
    )
    return Judged(list("abcdef"), np.array([0, 1, 0, 1, 0, 1]), predicted, probabilities)


def test_examples_are_chosen_by_confidence():
    assert mistakes(judged(), 2) == [4, 3]
    assert mistakes(judged(), 9) == [4, 3, 2]
    assert successes(judged(), 9) == [0, 5, 1]  # of each class in turn
    assert in_turn([7, 8, 9], np.array([1, 1, 0]), 2) == [9, 7]


def test_confused_pairs_leave_out_the_diagonal_and_zeros():
    counts = np.array([[9, 2, 0], [5, 9, 1], [0, 0, 9]])
    assert confused_pairs(counts, 2) == [(1, 0, 5), (0, 1, 2)]
    assert confused_pairs(counts, 9) == [(1, 0, 5), (0, 1, 2), (1, 2, 1)]


def test_metrics_without_the_newer_scores_do(run):
    """As a former tlx wrote them."""
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    kept = ("n", "accuracy", "accuracy_ci95", "macro_f1", "loss")
    metrics["test"] = {key: metrics["test"][key] for key in kept}
    write_json(run / "metrics.json", metrics)
    page = Page(write_report(run, gradcam=False).read_text("utf-8"))
    assert "66.7\u202f%" in page.text
    assert "Class by class" not in page.text
