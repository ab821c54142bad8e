"""The parameter tables of the write-ups that tlx reproduces, exactly."""

import json

import pytest

from tlx import summary
from tlx.composition import compose
from tlx.config import parse


def table(*overrides, num_classes):
    return summary.summarize(parse(compose(["data.root=null", *overrides])), num_classes)


def test_forty_images():
    """VGG16 with its own fully connected layers, only a new output on top."""
    found = table("backbone=vgg16_classifier", "stage=head", num_classes=2)
    assert (found["total"], found["trainable"]) == (134_268_738, 8_194)
    assert (found["tensors"], found["trainable_tensors"]) == (32, 2)
    blocks = [block["name"] for block in found["stages"][0]["blocks"]]
    assert blocks == ["block1", "block2", "block3", "block4", "block5", "fc1", "fc2", "head"]


def test_cats_and_dogs():
    """30 tensors before freezing, 4 of the head after; then block5's 6 too."""
    found = table(
        "backbone=vgg16", "data.image_size=150", "head=mlp", "head.dropout=0", "loss=binary",
        "stage=finetune", num_classes=2,
    )  # fmt: skip
    assert (found["total"], found["tensors"]) == (16_812_353, 30)
    head, top = found["stages"]
    assert (head["tensors"], head["trainable_tensors"]) == (30, 4)
    assert head["trainable"] == 8192 * 256 + 256 + 256 + 1
    assert (top["train_from"], top["trainable_tensors"]) == ("block5", 10)
    assert found["trainable_tensors"] == 10


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_flowers_of_vgg16(activation):
    found = table(
        "backbone=vgg16", "data.image_size=299", "head=mlp", f"head.activation={activation}",
        "head.allow_softmax=true", "stage=head", "stage.head.train_from=block5", num_classes=5,
    )  # fmt: skip
    counts = (found["total"], found["trainable"], found["frozen"])
    assert counts == (25_333_061, 17_697_797, 7_635_264)


def test_flowers_of_a_network_from_scratch():
    found = table(
        "backbone=cnn4", "data.image_size=null", "head.pool=flatten", "head.hidden=[512]",
        "stage=scratch", num_classes=5,
    )  # fmt: skip
    assert (found["total"], found["trainable"]) == (3_455_173, 3_455_173)
    assert (found["tensors"], found["trainable_tensors"]) == (12, 12)


def test_json_and_table_tell_the_tensors(capsys):
    arguments = ["backbone=squeezenet1_1", "num_classes=3", "stage=head"]
    summary.main([*arguments, "format=json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["tensors"], found["trainable_tensors"]) == (52, 2)  # 26 convolutions with a bias
    summary.main(arguments)
    last = capsys.readouterr().out.splitlines()[-2]
    assert [cell.strip() for cell in last.strip("│").split("│")] == ["tensors", "52", "2"]


def test_a_table_of_many_stages_breaks_neither_names_nor_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    summary.main(["backbone=squeezenet1_1", "num_classes=5", "stage=gradual"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
    assert max(map(len, lines)) <= 80
    assert ["head", "stem", "1,792", "0"] in rows
    first = rows.index(["head", "stem", "1,792", "0"])
    assert ["", "all", "725,061", "2,565"] in rows[first:]
    assert rows[-1] == ["", "tensors", "52", "52"]
    summary.main(["backbone=vgg16", "num_classes=5", "stage=finetune"])
    assert "│ block5  │  7,079,424 │          0 │ 7,079,424 │" in capsys.readouterr().out
