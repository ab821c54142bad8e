"""Each fault of images, labels and splits, planted in a healthy case: named first, only there."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from planted import SIDE, bars, folder_of_bars, shuffle_labels

from tlx.composition import compose
from tlx.config import parse
from tlx.data.augment import Augment
from tlx.data.manifest import Manifest, Sample
from tlx.diagnosis import inputs, splits
from tlx.diagnosis.before import DATA
from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import ranked
from tlx.diagnosis.inputs import first_input
from tlx.diagnosis.labels import labels_and_augmentation
from tlx.models.preprocess import Preprocess
from tlx.training.job import prepare


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return folder_of_bars(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def own_pictures(pictures, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(pictures, tmp_path / "pictures")


@pytest.fixture
def case(tmp_path):
    def make(root, *overrides):
        settings = [
            "backbone=squeezenet1_1", "backbone.weights=null", "data=folder", f"data.root={root}",
            f"data.image_size={SIDE}", "data.keep_together=none", "trainer=cpu", "report=none",
            "verbosity=plain", f"cache.dir={tmp_path}/features",
        ]  # fmt: skip
        return Case(prepare(parse(compose([*settings, *overrides])), tmp_path / "run"))

    return make


@pytest.fixture
def healthy(case, pictures):
    return as_if_pretrained(case(pictures))


def as_if_pretrained(case):
    """The input is examined without a look at the weights themselves."""
    config = case.job.config
    backbone = replace(config.backbone, weights="imagenet")
    return Case(replace(case.job, config=replace(config, backbone=backbone)))


def cheap(case):
    return ranked(finding for check in DATA for finding in check(case))


def full(case):
    return ranked(finding for finding in labels_and_augmentation(case))


def preprocessed_by(case, preprocess):
    return Case(replace(case.job, model=replace(case.job.model, preprocess=preprocess)))


# ---------------------------------------------------------------- a healthy case


def test_healthy_data_have_no_finding_above_note(healthy):
    found = cheap(healthy) + full(healthy)
    assert [(f.cause, f.severity) for f in found] == [("few_images", "note")]


def test_examining_changes_nothing(healthy):
    classifier = healthy.job.model.classifier.train()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.backbone.blocks[0].eval()
    modes = [module.training for module in classifier.modules()]
    cheap(healthy), full(healthy)
    assert [module.training for module in classifier.modules()] == modes
    assert all(not module._forward_pre_hooks for module in classifier.modules())
    torch.testing.assert_close(classifier.state_dict(), before, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in classifier.parameters())


# ---------------------------------------------------------------- the input


@pytest.mark.parametrize("name", ["unit", "signed", "pixels", "caffe"])
def test_another_input_than_the_weights(healthy, name):
    wrong = Preprocess.for_weights("squeezenet1_1", image_size=SIDE, input=name)
    finding = cheap(preprocessed_by(healthy, wrong))[0]
    assert (finding.cause, finding.severity) == ("input_mismatch", "error")
    assert finding.fix == "preprocess.input=weights"
    images = healthy.images("train", healthy.indices("train", 16))
    reds = wrong.normalize(images)[:, 0]
    assert finding.numbers["received_mean_r"] == pytest.approx(reds.mean().item(), rel=1e-4)
    assert finding.numbers["received_std_r"] == pytest.approx(reds.std().item(), rel=1e-4)
    right = (images[:, 2] / 255 - 0.406) / 0.225
    assert finding.numbers["wanted_mean_b"] == pytest.approx(right.mean().item(), abs=1e-4)


def test_channels_in_the_reverse_order(healthy):
    own = healthy.job.model.preprocess
    swapped = replace(own, channels="BGR", mean=own.mean[::-1], std=own.std[::-1])
    finding = cheap(preprocessed_by(healthy, swapped))[0]
    assert finding.cause == "input_mismatch"
    assert "reverse order" in finding.evidence


def test_first_input_is_what_the_first_convolution_takes(healthy):
    backbone = healthy.job.model.classifier.backbone
    images = torch.rand(2, 3, SIDE, SIDE)
    convolution = next(m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d))
    seen = []
    handle = convolution.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    backbone(images)
    handle.remove()
    torch.testing.assert_close(first_input(backbone, images), seen[0])


@pytest.mark.parametrize(("factor", "plus"), [(0.3, 0), (0.3, 178)], ids=["dark", "bright"])
def test_dark_and_bright_and_grey_photographs_are_no_mistake(case, own_pictures, factor, plus):
    for path in own_pictures.rglob("*.png"):
        Image.open(path).convert("L").point(lambda v: v * factor + plus).save(path)
    found = cheap(as_if_pretrained(case(own_pictures)))
    assert "input_mismatch" not in {finding.cause for finding in found}


@pytest.mark.parametrize(
    ("divisor", "severity"), [(255, "error"), (16, "warning")], ids=["0 to 1", "12 bits of 16"]
)
def test_images_that_use_few_levels(case, own_pictures, divisor, severity):
    for path in own_pictures.rglob("*.png"):
        pixels = np.asarray(Image.open(path)) / divisor
        Image.fromarray(pixels.round().astype(np.uint8)).save(path)
    finding = cheap(case(own_pictures))[0]
    assert (finding.cause, finding.severity) == ("input_mismatch", severity)


def test_more_blue_than_red_is_a_note(case, own_pictures):
    for path in own_pictures.rglob("*.png"):
        red, green, blue = Image.open(path).split()
        Image.merge("RGB", (red, green, blue.point(lambda v: v + 40))).save(path)
    found = [f for f in cheap(case(own_pictures)) if f.cause == "input_mismatch"]
    assert [finding.severity for finding in found] == ["note"]
    assert found[0].numbers["blue"] - found[0].numbers["red"] == pytest.approx(40 / 255, abs=0.04)


@pytest.mark.parametrize(
    ("backbone", "size", "fixes"),
    [
        ("squeezenet1_1", 63, []),
        ("squeezenet1_1", 64, ["data.image_size=32"]),
        ("vit_b_32", 96, ["data.image_size=32"]),
        ("maxvit_t", 224, ["find larger images"]),  # it takes multiples of 224
    ],
)
def test_images_far_smaller_than_the_input(case, pictures, backbone, size, fixes):
    examined = case(pictures, f"data.image_size={size}", f"backbone.name={backbone}")
    assert [finding.fix for finding in inputs.small_images(examined)] == fixes


@pytest.mark.parametrize(
    ("size", "severity", "fix"),
    [(224, "warning", "data.image_size=128"), (128, "note", "find larger images")],
)
def test_pretrained_weights_are_not_given_tiny_images(case, pictures, size, severity, fix):
    examined = as_if_pretrained(case(pictures, f"data.image_size={size}"))
    found = [(finding.severity, finding.fix) for finding in inputs.small_images(examined)]
    assert found == [(severity, fix)]


# ---------------------------------------------------------------- the splits


def test_a_class_missing_in_val(case, own_pictures):
    shutil.rmtree(own_pictures / "val/lying")
    shutil.rmtree(own_pictures / "test/lying")
    finding, *others = cheap(case(own_pictures))
    assert (finding.cause, finding.severity) == ("class_missing", "warning")
    assert {f.numbers["smallest_class"] for f in others if f.cause == "few_images"} == {0}
    assert "'upright' would be class 0 and not 1" in finding.evidence


def test_a_class_that_a_drawn_split_lacks_is_not_out_of_order(case, pictures, tmp_path):
    shutil.copytree(pictures / "train", tmp_path / "drawn")
    for number in range(3):
        bars(tmp_path / "drawn/rare" / f"{number}.png", upright=True, seed=number)
    found = cheap(case(tmp_path / "drawn", "data.val=0.01", "data.test=0.3"))
    assert not {"class_order", "class_missing"} & {finding.cause for finding in found}


@pytest.mark.parametrize("twin", ["Lying", "lying ", "lyings", "LY_ING"])
def test_two_names_of_one_class(case, own_pictures, twin):
    for split in ("train", "test"):
        some = sorted((own_pictures / split / "lying").iterdir())[::2]
        (own_pictures / split / twin).mkdir()
        for path in some:
            path.rename(own_pictures / split / twin / path.name)
    finding = cheap(case(own_pictures))[0]
    assert (finding.cause, finding.severity) == ("class_order", "error")
    assert repr(twin) in finding.evidence


def test_names_that_differ_in_earnest():
    labels = {
        "train": {"a", "A", "bus", "car", "10", "1", "-1", "1-0"},
        "val": {"a", "A", "bus", "car", "10", "1", "-1", "1-0"},
    }
    assert list(splits.differing_classes(labels)) == []


def test_outputs_of_a_run_in_another_order():
    samples = [Sample(f"{i}.png", label, "train", "", "") for i, label in enumerate("abc")]
    manifest = Manifest.of("here", samples)
    assert list(splits.class_order_of_run(("a", "b", "c"), manifest)) == []
    (finding,) = splits.class_order_of_run(("a", "c", "b"), manifest)
    assert (finding.cause, finding.severity) == ("class_order", "error")
    assert "output 1 means 'c', the manifest has 'b'" in finding.evidence
    assert len(list(splits.class_order_of_run(("a", "b"), manifest))) == 1


@pytest.mark.parametrize(("size", "found"), [(64, ["warning"]), (None, [])])
def test_a_near_copy_of_a_train_image_in_test(case, own_pictures, size, found):
    coarse = np.random.default_rng(0).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)
    picture.save(own_pictures / "train/lying/0.png")
    if size is not None:
        picture.resize((size, size)).save(own_pictures / "test/lying/0.png")
    leaks = [f for f in cheap(case(own_pictures)) if f.cause == "leak"]
    assert [finding.severity for finding in leaks] == found


def test_near_copies_are_named_with_their_own_twins(case, own_pictures):
    """Of two pictures: one is in train and val, the other in val and test."""
    for seed, (one, other) in enumerate(
        [("train/lying/0.png", "val/lying/0.png"), ("val/upright/1.png", "test/upright/1.png")]
    ):
        coarse = np.random.default_rng(seed).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)
        picture.save(own_pictures / one)
        picture.resize((64, 64)).save(own_pictures / other)
    leaks = [f for f in cheap(case(own_pictures)) if f.cause == "leak"]
    assert [finding.numbers["images"] for finding in leaks] == [1, 1]
    said = " ".join(finding.evidence for finding in leaks)
    assert "also in train, such as val/lying/0.png and train/lying/0.png (train)" in said
    assert "also in train or val, such as test/upright/1.png and val/upright/1.png (val)" in said


def test_a_picture_with_two_labels(case, own_pictures):
    one, other = "train/lying/0.png", "train/upright/3.png"
    shutil.copy(own_pictures / one, own_pictures / other)
    finding = cheap(case(own_pictures))[0]
    assert (finding.cause, finding.severity) == ("label_conflict", "error")
    assert finding.evidence == (
        f"2 images of 1 picture are exact copies with different labels, such as {one} and {other}"
    )


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_augmented_split_is_found(healthy, monkeypatch, split):
    served = healthy.data.dataset

    def augmented(name):
        dataset = served(name)
        if name == split:
            dataset.augment, dataset.keys = Augment(horizontal_flip=True), range(len(dataset))
        return dataset

    monkeypatch.setattr(healthy.data, "dataset", augmented)
    finding = cheap(healthy)[0]
    assert (finding.cause, finding.severity) == ("augmented_evaluation", "error")
    assert split in finding.evidence
    assert 0 < finding.numbers["changed"] < finding.numbers["readings"] == 9


# ---------------------------------------------------------------- the labels


def test_shuffled_labels(case, own_pictures):
    shuffle_labels(own_pictures)
    shuffled = case(own_pictures)
    finding = full(shuffled)[0]
    assert (finding.cause, finding.severity) == ("shuffled_labels", "note")  # random weights
    assert finding.numbers["p"] > 0.05
    assert finding.numbers["images"] == 132
    assert full(as_if_pretrained(shuffled))[0].severity == "warning"


@pytest.mark.parametrize("exchanged", [{}, {"0": "5", "5": "0"}])
def test_two_of_nine_classes_exchanged_in_val(case, tmp_path, write_image, exchanged):
    """Nine colours, of which eight are looked at."""
    for split, count in (("train", 16), ("val", 8), ("test", 2)):
        for name in map(str, range(9)):
            shown = int(exchanged.get(name, name) if split == "val" else name)
            colour = (40 + 85 * (shown % 3), 40 + 85 * (shown // 3), 120)
            for number in range(count):
                seed = 1000 * len(split) + 100 * shown + number
                write_image(tmp_path / "nine" / split / name / f"{number}.png", colour, seed)
    found = [f for f in full(case(tmp_path / "nine")) if f.cause == "class_order"]
    assert [f.numbers["exchanged"] for f in found] == ([16] if exchanged else [])
    assert all("'0' looks like '5', '5' looks like '0'" in f.evidence for f in found)


def test_augmentation_that_hides_the_class(case, pictures):
    turned = as_if_pretrained(
        case(pictures, "augment.rotation_range=90", "augment.width_shift_range=0.1")
    )
    finding = full(turned)[0]
    assert (finding.cause, finding.severity) == ("strong_augmentation", "warning")
    assert finding.fix.startswith("augment.rotation_range=0.0,")
    numbers = finding.numbers
    assert numbers["augmented"] < numbers["plain"] - 0.2
    assert numbers["with_rotation_range_alone"] < numbers["with_width_shift_range_alone"]


@pytest.mark.parametrize("name", ["augment=light", "augment=mixup"])
def test_augmentation_that_keeps_the_class(case, pictures, name):
    assert full(as_if_pretrained(case(pictures, name))) == []
