"""What a configuration amounts to, and the mistakes that show in it alone."""

import logging

import pytest
import torch

from tlx.composition import compose
from tlx.config import parse
from tlx.errors import UserError
from tlx.models.preprocess import Preprocess
from tlx.training.plan import (
    architecture,
    check,
    meta_classifier,
    preprocessing,
    stage_views,
    why_not_cached,
)
from tlx.training.unfreezing import apply_stage

DATA = ("data.root=null", "data.image_size=null", "trainer=cpu")


def config(*overrides):
    return parse(compose([*DATA, *overrides]))


@pytest.mark.parametrize("weights", ["imagenet", "IMAGENET1K_V1", "own.pth"])
@pytest.mark.parametrize("name", ["unit", "signed", "pixels", "caffe"])
def test_an_input_that_does_not_match_the_weights_is_an_error(name, weights):
    wrong = config(f"preprocess.input={name}", f"backbone.weights={weights}")
    with pytest.raises(UserError) as caught:
        check(wrong)
    message = str(caught.value)
    assert message.startswith(f"preprocess.input={name} is not what the weights of vgg16 were")
    assert "expect RGB from -2.118 to 2.64 (mean 0.485, 0.456, 0.406; std 0.229" in message
    given = Preprocess.for_weights("vgg16", input=name).describe_input()
    assert f"would get {given}" in message
    assert "preprocess.input=weights" in message
    assert "preprocess.allow_mismatch=true" in message


def test_a_mismatch_that_is_allowed_is_said_aloud(caplog):
    with caplog.at_level(logging.WARNING, "tlx"):
        check(config("preprocess.input=unit", "preprocess.allow_mismatch=true"))
    (message,) = caplog.messages
    assert message.startswith("MISMATCH: preprocess.input=unit is not what the weights of vgg16")
    assert "would get RGB from 0 to 1 (" in message


@pytest.mark.parametrize(
    "overrides",
    [
        ["preprocess.input=weights"],
        ["preprocess.input=caffe", "backbone.weights=null"],
        ["preprocess.input=pixels", "backbone=cnn4"],
    ],
)
def test_an_input_that_matches_or_that_nothing_expects(overrides, caplog):
    with caplog.at_level(logging.WARNING, "tlx"):
        check(config(*overrides))
    assert caplog.messages == []


def test_preprocessing_follows_the_settings_and_the_weights():
    assert preprocessing(config("preprocess.input=caffe")).channels == "BGR"
    assert preprocessing(config("backbone=resnet50")).resize_size == 232
    older = config("backbone=resnet50", "backbone.weights=IMAGENET1K_V1")
    assert preprocessing(older).resize_size == 256
    assert preprocessing(config("backbone=resnet50"), "IMAGENET1K_V1").resize_size == 256
    assert preprocessing(config("backbone=cnn4")).std == (1.0, 1.0, 1.0)


def test_the_network_has_the_size_of_the_weights():
    large = config("backbone=vit_b_16", "backbone.weights=IMAGENET1K_SWAG_E2E_V1")
    assert meta_classifier(large, 2).backbone.image_size == 384


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["head.activation=softmax"], "head.activation=softmax .* 1/width.*allow_softmax=true"),
        (["head=mlp", "head.activation=sigmoid"], "head.activation=sigmoid .* relu | leaky_relu"),
        (["backbone=cnn4", "backbone.weights=imagenet"], "cnn4, .* set backbone.weights=null"),
        (["backbone.weights=IMAGENET1K_V7"], "unknown backbone.weights .*IMAGENET1K_V1"),
        (["backbone=resnet18", "+backbone.classifier=true"], "resnet18: only .* alexnet and vgg"),
        (["stage.head.train_from=head.layers.output"], "head.* always learns as a whole"),
        (
            ["backbone=resnet18", "data.image_size=32", "data.batch_size=1"],
            "stage top: of one image with 32 .* data.batch_size=2 .*top.batchnorm_learning=frozen",
        ),
    ],
)
def test_mistakes(overrides, message):
    with pytest.raises(UserError, match=message):
        check(config(*overrides))


def test_a_softmax_that_is_allowed_is_built_and_a_saved_one_needs_no_leave():
    settings = config("head=mlp", "head.activation=softmax", "head.allow_softmax=true")
    check(settings)
    design = architecture(settings, 2, preprocessing(settings))
    assert design.activation == "softmax"
    assert isinstance(meta_classifier(settings, 2).head.layers.activation1, torch.nn.Softmax)


def test_why_not_cached_of_a_boundary_inside_the_head():
    settings = config("stage=head", "stage.head.train_from=head.layers")
    with pytest.raises(UserError, match="always learns as a whole"):
        why_not_cached(settings, meta_classifier(config(), 2), settings.stages[0])


@pytest.mark.parametrize(
    ("overrides", "views"),
    [
        ([], 1),
        (["augment.horizontal_flip=true"], 2),
        (["augment=light"], 8),
        (["augment=light", "stage.head.epochs=2"], 2 + 3),
        (["augment=light", "trainer.limit_epochs=1"], 2),
        (["augment=light", "cache=off"], None),
        (["augment=light", "cache=off", "cache.views=3"], 3),
        (["augment=light", "backbone=resnet18", "stage.head.batchnorm=statistics"], None),
    ],
)
def test_views_of_a_stage(overrides, views):
    settings = config(*overrides)
    assert stage_views(settings, meta_classifier(settings, 2), settings.stages[0]) == views


def test_a_frozen_classifier_drops_nothing_out():
    settings = config("backbone=alexnet", "+backbone.classifier=true", "stage=head")
    classifier = meta_classifier(settings, 2)
    assert why_not_cached(settings, classifier, settings.stages[0]) is None
    apply_stage(classifier, settings.stages[0])
    blocks = classifier.backbone.blocks
    assert not any(module.training for module in blocks.modules() if module is not blocks)
    tensors = [name for name, p in classifier.named_parameters() if p.requires_grad]
    assert tensors == ["head.layers.output.weight", "head.layers.output.bias"]
