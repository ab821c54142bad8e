"""Each fault planted in a healthy network is named first, and not in the healthy one."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from planted import weights_file
from torch import nn

from tlx.composition import compose
from tlx.config import parse
from tlx.diagnosis.before import NETWORK, NETWORK_FULL
from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import ranked
from tlx.training.job import prepare
from tlx.training.optim import build_optimizer

# squeezenet1_1 has no BatchNorm, shufflenet has; both at sizes that take a second
SMALL = (
    "data=folder", "data.keep_together=none", "data.batch_size=8", "trainer=cpu",
    "trainer.precision=32", "data.image_size=64", "data.val=0.2", "data.test=0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, make_folder):
    return make_folder(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def job_of(photographs, tmp_path_factory):
    """Prepared once for the same overrides; each test has a network of its own."""

    @functools.cache
    def prepared(*overrides):
        config = parse(compose([*SMALL, f"data.root={photographs}", *overrides]))
        return prepare(config, tmp_path_factory.mktemp("run"))

    def make(*overrides):
        job = prepared(*overrides)
        classifier = copy.deepcopy(job.model.classifier)
        return replace(job, model=replace(job.model, classifier=classifier))

    return make


@pytest.fixture
def from_scratch(job_of):
    """A network that learns as a whole."""

    def make(*overrides, backbone="shufflenet_v2_x0_5", **settings):
        overrides = f"backbone={backbone}", "backbone.weights=null", "stage=scratch", *overrides
        return Case(job_of(*overrides), **settings)

    return make


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of weights that are not a new network's, by the network's name."""
    folder = tmp_path_factory.mktemp("weights")
    return functools.cache(lambda name: weights_file(folder / f"{name}.pt", name))


@pytest.fixture
def pretrained(job_of, weights):
    """The demo's two stages on a file of weights."""

    def make(*overrides, backbone="squeezenet1_1", file=None, **settings):
        file = file or weights(backbone)
        overrides = f"backbone={backbone}", f"backbone.weights={file}", *overrides
        return Case(job_of(*overrides), **settings)

    return make


def found(case, checks=NETWORK + NETWORK_FULL):
    return ranked(finding for check in checks for finding in check(case))


def above_notes(case):
    return [finding for finding in found(case) if finding.severity != "note"]


def head(case):
    return case.job.model.classifier.head


# ---------------------------------------------------------------- healthy


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
def test_a_healthy_fine_tuning_has_no_finding(pretrained, optimizer):
    assert above_notes(pretrained(f"optimizer={optimizer}")) == []


def test_healthy_batchnorm_has_no_finding(pretrained):
    assert above_notes(pretrained(backbone="shufflenet_v2_x0_5")) == []


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "efficientnet_b0"])
def test_sigmoids_by_design_are_none_to_name(from_scratch, backbone):
    assert found(from_scratch(backbone=backbone), NETWORK) == []


def test_an_examination_changes_nothing(from_scratch):
    case = from_scratch("head.hidden=[32]", "head.dropout=0.5")
    classifier = case.job.model.classifier
    classifier.backbone.blocks[1].eval().requires_grad_(False)

    def state():
        return (
            {k: v.clone() for k, v in classifier.state_dict().items()},
            [(m.training, getattr(m, "momentum", None)) for m in classifier.modules()],
            [(p.requires_grad, p.grad) for p in classifier.parameters()],
            [len(m._forward_hooks) for m in classifier.modules()],
            torch.get_rng_state().tolist(),
        )

    before = state()
    found(case)
    after = state()
    assert before[1:] == after[1:]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


# ---------------------------------------------------------------- weights


def test_running_statistics_that_did_not_load(pretrained):
    case = pretrained(backbone="shufflenet_v2_x0_5")
    for module in case.job.model.classifier.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    first = found(case)[0]
    assert first.cause == "weights_not_loaded"
    assert first.numbers["different"] % 3 == 0  # mean, variance and the count of batches


def test_frozen_blocks_at_random(from_scratch, pretrained):
    case = from_scratch("stage=head", backbone="squeezenet1_1")
    first = found(case)[0]
    assert first.cause == "weights_not_loaded"
    assert "stem, fire2" in first.evidence
    later = "+stage.later={train_from: head, epochs: 1}"
    thawed = from_scratch(later, "allow_refreeze=true", backbone="squeezenet1_1")
    assert found(thawed, NETWORK) == []  # what it freezes has learned before


# ---------------------------------------------------------------- softmax and sigmoid


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_softmax_in_a_hidden_layer(pretrained, kind):
    hidden = "head.hidden=[64]", "head.pool=flatten", "head.allow_softmax=true"
    case = pretrained(*hidden, f"head.activation={kind}")
    first = found(case)[0]
    assert first.cause == "softmax"
    assert "layers.activation1" in first.evidence
    expected = {"softmax": 1 / 64, "sigmoid": 0.5}[kind]
    assert first.numbers["mean_activation"] == pytest.approx(expected, rel=0.1)
    assert first.numbers["gradient_ratio"] < 0.5
    assert above_notes(pretrained(*hidden, "head.activation=relu")) == []


def test_a_softmax_before_the_loss(pretrained):
    case = pretrained()
    assert above_notes(case) == []
    case = pretrained()
    head(case).layers.append(nn.Softmax(dim=1))
    findings = found(case)
    assert [f.cause for f in findings[:2]] == ["softmax", "softmax"]  # by name, and by its outputs
    # the loss of a probability of 1 for the right one of three classes
    perfect = nn.functional.cross_entropy(torch.tensor([[1.0, 0, 0]]), torch.tensor([0]))
    assert findings[0].numbers["lowest_loss"] == pytest.approx(float(perfect))


def test_a_softmax_in_the_backbone(pretrained):
    case = pretrained()
    case.job.model.classifier.backbone.blocks.fire5.squeeze_activation = nn.Softmax(dim=1)
    first = found(case)[0]
    assert first.cause == "softmax"
    assert "fire5.squeeze_activation" in first.evidence


# ---------------------------------------------------------------- what learns


def still(stage, classifier):
    optimizer = build_optimizer(stage, classifier)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


def test_nothing_trains(pretrained):
    assert found(pretrained(optimizer=still))[0].cause == "nothing_trains"
    case = pretrained("stage=head")
    case.job.model.classifier.head.layers = nn.Sequential(nn.Flatten(), Constant())
    assert found(case, NETWORK_FULL)[0].cause == "nothing_trains"


class Constant(nn.Module):
    """Three logits that depend on nothing; its one parameter has no part in them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.ones(len(x), 3) * self.weight.detach()


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("rate", ["10", "1e-9"])
def test_a_rate_far_off(pretrained, optimizer, rate):
    first = found(pretrained(f"optimizer={optimizer}", f"optimizer.lr={rate}"))[0]
    assert first.cause == "learning_rate"
    assert "stage head" in first.evidence
    assert ("too high" in first.evidence) is (rate == "10")


def test_one_stage_with_a_rate_far_off(pretrained):
    first = found(pretrained("stage.top.lr=1"))[0]
    assert first.cause == "learning_rate"
    assert first.fix == "stage.top.lr=find"


def test_the_backbone_learns_while_the_head_is_random(pretrained):
    case = pretrained("stage=head", "stage.head.train_from=top")
    first = found(case)[0]
    assert first.cause == "early_unfreezing"
    assert first.numbers["head_rate"] == 1e-3
    gentle = pretrained("stage=head", "stage.head.train_from=top", "stage.head.lr_decay=0.05")
    assert above_notes(gentle) == []


def test_a_head_that_was_trained_before_is_no_random_one(pretrained):
    case = pretrained("stage=head", "stage.head.train_from=top")
    with torch.no_grad():
        head(case).output.weight.mul_(1.1)
    assert found(case, NETWORK) == []


# ---------------------------------------------------------------- BatchNorm


def test_batchnorm_on_tiny_batches(pretrained):
    first = found(pretrained("data.batch_size=2", backbone="shufflenet_v2_x0_5"))[0]
    assert first.cause == "batchnorm"
    assert first.numbers == {"images": 2, "layers": 1}
    frozen = "stage.top.batchnorm_learning=frozen"
    assert above_notes(pretrained("data.batch_size=2", frozen, backbone="shufflenet_v2_x0_5")) == []


# ---------------------------------------------------------------- values


def test_nan_with_the_module_that_made_it(from_scratch):
    case = from_scratch()
    case.job.model.classifier.backbone.blocks.stage2[1].branch2[0].weight.data[3, 0] = torch.nan
    first, second = found(case)
    assert (first.cause, second.cause) == ("not_finite", "not_finite")
    assert "weight of stage2.1.branch2.0" in first.evidence
    assert second.evidence.endswith("comes out of stage2.1.branch2.0")


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


# ---------------------------------------------------------------- fitting


class Same(nn.Module):
    """The first image's features for every image."""

    def forward(self, x):
        return x[:1].expand_as(x) * torch.ones(len(x), *[1] * (x.ndim - 1))


def test_the_same_features_for_every_image(pretrained):
    case = pretrained("stage=head")
    case.job.model.classifier.head.pool = Ones()
    first = found(case)[0]
    assert first.cause == "cannot_fit"
    assert "the same features for every image" in first.evidence


class Ones(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), x.shape[1], 1, 1)


def test_copies_with_different_labels(pretrained, tmp_path, write_image):
    root = tmp_path / "copies"
    for name in ("blue", "green", "red"):
        for number in range(8):
            write_image(root / name / f"{number}.png", (9, 9, 9), seed=number // 2)
    case = pretrained("stage=head", "data.on_leak=warn", f"data.root={root}")
    first = found(case)[0]
    assert first.cause == "cannot_fit"
    assert "different labels" in first.evidence
