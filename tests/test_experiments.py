"""The write-ups as experiments: composed, counted, trained a step; and one's faults, as numbers."""

import itertools
import shutil
import sys
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from tlx import composition
from tlx.composition import compose, conf_dir
from tlx.config import parse
from tlx.errors import UserError
from tlx.evaluation.intervals import wilson
from tlx.models.outputs import sample_losses
from tlx.summary import summarize
from tlx.training.inputs import image_data
from tlx.training.job import prepare
from tlx.training.optim import build_optimizer
from tlx.training.plan import meta_classifier
from tlx.training.unfreezing import apply_stage

sys.path.insert(0, str(conf_dir().parent / "benchmarks" / "reproductions"))
from commands import documented, stand_ins

# Classes, parameters in total, and those that learn in each stage. VGG16's are printed in the
# write-ups. InceptionV3: Keras counts 21,802,784, with 34,432 statistics and no gammas, of which
# torchvision has 17,216. The small network: 896 + 18,496 + 73,856 + 147,584 in convolutions, and
# 7 × 7 × 128 features.
COUNTS = {
    "cats_dogs_forty_images": (2, 134_268_738, [8_194]),
    "cats_dogs_forty_images_fixed": (2, 134_268_738, [8_194]),
    "cats_dogs_vgg16": (2, 16_812_353, [2_097_665, 9_177_089]),
    "elpv_vgg16": (2, 14_715_714, [1_026, 12_980_226]),
    "flowers_cnn": (5, 240_832 + 3_211_776 + 2_565, [3_455_173]),
    "flowers_cnn_augmented": (5, 240_832 + 3_211_776 + 2_565, [3_455_173]),
    "flowers_inception_cached": (5, 21_785_568 + 9_440_261, [9_440_261]),
    "flowers_inception_frozen": (5, 21_785_568 + 1_180_037, [1_180_037]),
    "flowers_inception_finetuned": (
        5,
        21_785_568 + 1_180_037,
        [1_180_037, 6_758_400 + 34_432 + 1_180_037],
    ),
    "flowers_vgg16_relu": (5, 25_333_061, [17_697_797]),
    "flowers_vgg16_softmax": (5, 25_333_061, [17_697_797]),
    "resnet50_bottleneck": (10, 23_508_032 + 20_490, [20_490]),
    "resnet50_bottleneck_rescaled": (10, 23_508_032 + 20_490, [20_490]),
}
SIZES = {"cats_dogs_forty": 224, "flowers_cnn": 48, "flowers_inception": 75}  # else 32 pixels
MISTAKES = {  # what the three cries for help did, and none of the others does
    "cats_dogs_forty_images": ("pixels", True, False),
    "resnet50_bottleneck_rescaled": ("unit", True, False),
    "flowers_vgg16_softmax": ("weights", False, True),
}
every_experiment = pytest.mark.parametrize("name", COUNTS)


@cache
def settings(name):
    return parse(compose([f"experiment={name}", "data.root=somewhere"]))


def test_all_experiments_are_here():
    found = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    assert found == set(COUNTS)
    assert len(found) == 13


@every_experiment
def test_its_documented_commands_compose(name):
    own = "elpv" if name == "elpv_vgg16" else "folder"
    assert settings(name).data.source == own
    commands = documented(name)
    assert commands[0] == [f"experiment={name}", "data=elpv" if own == "elpv" else "data.root=DIR"]
    assert list(stand_ins(name).values()) == [c for c in commands if "data=elpv" in c]
    for command in stand_ins(name).values():
        parsed = parse(compose(command))
        assert parsed.data.source == "elpv"
        head, preprocess = parsed.head, parsed.preprocess
        mistakes = (preprocess.input, preprocess.allow_mismatch, head.allow_softmax)
        assert mistakes == MISTAKES.get(name, ("weights", False, False))


@every_experiment
def test_the_command_line_wins(name):
    last = settings(name).stages[-1].name
    given = ["backbone=resnet18", "head=linear", "optimizer=sgd", "data.image_size=77", "seed=5"]
    stage = [f"stage.{last}.epochs=77", f"stage.{last}.lr_decay=0.5"]
    parsed = parse(compose([f"experiment={name}", "data=elpv", *given, *stage]))
    top = parsed.stages[-1]
    assert (parsed.backbone.name, parsed.data.image_size, parsed.seed) == ("resnet18", 77, 5)
    assert (top.epochs, top.lr_decay, top.optimizer.target) == (77, 0.5, "torch.optim.SGD")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("data: {image_sise: 64}", r"'data.image_sise'. Did you mean data.image_size"),
        ("stage: {head: {epoch: 3}}", r"'stage.head.epoch'. Did you mean stage.head.epochs"),
        ("lables: 1", r"unknown key 'lables'"),
        (
            "defaults: [override /backbone: vgg61]",
            r"unknown backbone 'vgg61'. Did you mean .*vgg16",
        ),
    ],
)
def test_a_typo_in_a_file_raises(lines, message, tmp_path, monkeypatch):
    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / "conf" / "experiment" / "own.yaml").write_text(f"# @package _global_\n{lines}\n")
    monkeypatch.setattr(composition, "conf_dir", lambda: tmp_path / "conf")
    with pytest.raises(UserError, match=message):
        parse(compose(["experiment=own", "data=elpv"]))


@every_experiment
def test_its_parameters_are_the_write_ups(name):
    classes, total, trainable = COUNTS[name]
    table = summarize(settings(name), classes)
    assert table["total"] == total
    assert [stage["trainable"] for stage in table["stages"]] == trainable
    assert table["frozen"] == total - trainable[-1]


def test_thirty_tensors_learn_before_freezing_and_four_after():
    parsed = settings("cats_dogs_vgg16")
    classifier = meta_classifier(parsed, 2)
    assert sum(p.requires_grad for p in classifier.parameters()) == 30
    apply_stage(classifier, parsed.stages[0])
    assert sum(p.requires_grad for p in classifier.parameters()) == 4


@every_experiment
def test_it_trains_a_step(name, image_folder, tmp_path):
    """All that should learn gets a gradient, and nothing else is in the optimizer's hands."""
    if name == "cats_dogs_vgg16":  # two classes as one logit
        shutil.rmtree(image_folder / "red")
    size = next((size for start, size in SIZES.items() if name.startswith(start)), 32)
    parsed = parse(
        compose([
            f"experiment={name}", "data=folder", f"data.root={image_folder}",
            "backbone.weights=null", f"data.image_size={size}", "data.batch_size=2",
            "data.num_workers=0", "data.keep_together=none", "trainer.accelerator=cpu",
            "data.soft_labels=false",
        ])
    )  # fmt: skip
    job = prepare(parsed, tmp_path)
    images, targets, _ = next(iter(image_data(job).train_dataloader()))
    for stage in job.config.stages:
        classifier = job.model.classifier
        apply_stage(classifier, stage)
        optimizer = build_optimizer(stage, classifier)
        losses = sample_losses(classifier(job.model.preprocess.normalize(images)), targets)
        losses.mean().backward()
        learning = [p for p in classifier.parameters() if p.grad is not None]
        given = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert given == {id(p) for p in learning}
        assert all(p.requires_grad == (p.grad is not None) for p in classifier.parameters())
        assert all(p.grad.isfinite().all() for p in learning)
        assert sum(bool(p.grad.any()) for p in learning) >= len(learning) * 0.9  # ReLUs are off
        before = [p.detach().clone() for p in classifier.head.output.parameters()]
        optimizer.step()
        after = classifier.head.output.parameters()
        assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        optimizer.zero_grad()


def test_a_missing_folder_says_where_the_images_come_from():
    with pytest.raises(UserError, match=r"data.root is not given.* Kaggle's Dogs"):
        compose(["experiment=cats_dogs_vgg16"])


# ---- "Why is my VGG16 not learning?": what its two confusion matrices say ----

CLASSES = ("cat", "dog")
SAYS_CAT = {"cat": [1, 1, 1, 1, 0], "dog": [1, 1, 0, 0, 0]}  # of the five test images of each


def batches() -> Iterator[tuple[str, np.ndarray]]:
    """The write-up's generator: five cats, five dogs, in turn; labels one-hot, column 0 is cat."""
    one_hot = {"cat": np.tile([1.0, 0.0], (5, 1)), "dog": np.tile([0.0, 1.0], (5, 1))}
    return itertools.cycle([(name, one_hot[name]) for name in CLASSES])


def test_the_write_ups_matrices_have_both_faults():
    generator = batches()
    printed = []
    for _ in range(2):
        _, labels = next(generator)
        shown, _ = next(generator)  # predict_generator takes the next batch …
        printed.append(confusion_matrix(labels[:, 0], SAYS_CAT[shown], labels=[0, 1]).tolist())
        next(generator)  # … and leaves the two out of step
    assert printed == [[[0, 0], [3, 2]], [[1, 4], [0, 0]]]
    # Drawn with index 1 called dog: of 5 dogs 2 right, of 5 cats 1. But 1 in column 0 is cat.
    assert np.sum([np.trace(matrix) for matrix in printed]) == 3
    names = np.repeat(CLASSES, 5)
    said = np.where([*SAYS_CAT["cat"], *SAYS_CAT["dog"]], "cat", "dog")
    matched = confusion_matrix(names, said, labels=CLASSES)
    assert matched.tolist() == [[4, 1], [2, 3]]
    assert wilson(3, 10) == pytest.approx((0.108, 0.603), abs=5e-4)
    assert wilson(int(np.trace(matched)), 10) == pytest.approx((0.397, 0.892), abs=5e-4)
