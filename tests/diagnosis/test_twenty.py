"""The twenty faults of docs/doctor.md, each planted in what is otherwise healthy.

The whole doctor names the planted one first, no other as an error but what follows from it, and
above a note nothing in the healthy twin.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planted import (
    OVERFITTED,
    answer_always,
    change,
    folder_of_bars,
    plant_curves,
    read_rows,
    shuffle_labels,
    weights_file,
    write_rows,
)
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model

from tlx.composition import compose
from tlx.config import parse
from tlx.data.augment import Augment
from tlx.diagnosis.after import examine_run
from tlx.diagnosis.before import case_of, examine
from tlx.diagnosis.case import Case
from tlx.diagnosis.findings import Examination
from tlx.training.optim import build_optimizer

SETTINGS = (
    "data=folder", "data.image_size=32", "data.keep_together=none", "data.num_workers=0",
    "trainer=cpu", "trainer.precision=32", "report=none", "verbosity=quiet",
)  # fmt: skip
HIDDEN = ("head.hidden=[64]", "head.pool=flatten")


class Bench:
    """`images` are its own to spoil."""

    def __init__(self, folder: Path, images: Path, weights: Path) -> None:
        self.folder, self.images, self.weights = folder, images, weights

    def case(self, *overrides: str, backbone: str = "squeezenet1_1") -> Case:
        arguments = [
            *SETTINGS, f"data.root={self.images}", f"backbone={backbone}",
            f"backbone.weights={self.weights / backbone}.pt", *overrides,
        ]  # fmt: skip
        return case_of(parse(compose(arguments)), self.folder)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healthy")
    folder_of_bars(folder / "images")
    for backbone in ("squeezenet1_1", "shufflenet_v2_x0_5"):
        weights_file(folder / f"{backbone}.pt", backbone)
    return folder


@pytest.fixture
def bench(healthy: Path, tmp_path: Path) -> Bench:
    images = shutil.copytree(healthy / "images", tmp_path / "images")
    return Bench(tmp_path / "run", images, healthy)


def causes(found: Examination, *severities: str) -> set[str]:
    return {f.cause for f in found.findings if f.severity in severities}


# ---------------------------------------------------------------- before a training

Plant = Callable[[Bench], Case]
PLANTS: dict[str, tuple[Plant, str]] = {}


def fault(name: str, evidence: str = "") -> Callable[[Plant], None]:
    """`name` is a number and the cause; `evidence` is part of what must be said."""
    return lambda plant: PLANTS.update({name: (plant, evidence)})


@fault("1 input_mismatch")
def divided_by_255_alone(bench: Bench) -> Case:
    return bench.case("preprocess.input=unit")


@fault("2 weights_not_loaded", "1 of 50 tensors")
def a_tensor_that_did_not_load(bench: Bench) -> Case:
    case = bench.case()
    nn.init.normal_(case.job.model.classifier.backbone.blocks.stem.conv.weight)
    return case


@fault("2 weights_not_loaded: a file of an untrained network", "before they were trained")
def untrained_weights(bench: Bench) -> Case:
    torch.save(get_model("squeezenet1_1", weights=None).state_dict(), bench.images / "new.pt")
    return bench.case(f"backbone.weights={bench.images}/new.pt")


@fault("3 softmax", "layers.activation1")
def softmax_in_a_hidden_layer(bench: Bench) -> Case:
    return bench.case(*HIDDEN, "head.activation=softmax")


@fault("3 softmax: before the loss")
def softmax_before_the_loss(bench: Bench) -> Case:
    case = bench.case()
    case.job.model.classifier.head.layers.append(nn.Softmax(dim=1))
    return case


@fault("4 nothing_trains")
def no_rate(bench: Bench) -> Case:
    def still(stage, classifier):
        optimizer = build_optimizer(stage, classifier)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        return optimizer

    return Case(bench.case().job, still)


@fault("4 not_in_optimizer", "1 of 2 parameters")
def without_the_bias(bench: Bench) -> Case:
    def without(stage, classifier):
        optimizer = build_optimizer(stage, classifier)
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if p is not classifier.head.output.bias]
        return optimizer

    return Case(bench.case().job, without)


@fault("5 learning_rate: too high", "too high")
def too_high(bench: Bench) -> Case:
    return bench.case("optimizer.lr=10")


@fault("5 learning_rate: too low", "too low")
def too_low(bench: Bench) -> Case:
    return bench.case("optimizer.lr=1e-9")


@fault("6 early_unfreezing")
def unfrozen_at_once(bench: Bench) -> Case:
    return bench.case("stage=head", "stage.head.train_from=top")


@fault("7 batchnorm: tiny batches")
def two_images_at_a_time(bench: Bench) -> Case:
    return bench.case("data.batch_size=2", backbone="shufflenet_v2_x0_5")


@fault("7 batchnorm: train and eval mode", "correlation")
def other_statistics(bench: Bench) -> Case:
    state = torch.load(bench.weights / "shufflenet_v2_x0_5.pt")
    torch.manual_seed(1)
    for name in state:
        if name.startswith("conv5") and name.endswith("running_var"):
            state[name] *= torch.exp(4 * torch.randn_like(state[name]))
    path = bench.images / "moved.pt"
    torch.save(state, path)
    return bench.case(f"backbone.weights={path}", backbone="shufflenet_v2_x0_5")


@fault("8 class_order: labels of val exchanged", "'lying' looks like 'upright'")
def exchanged(bench: Bench) -> Case:
    val = bench.images / "val"
    (val / "lying").rename(val / "between")
    (val / "upright").rename(val / "lying")
    (val / "between").rename(val / "upright")
    return bench.case()


@fault("9 shuffled_labels")
def shuffled(bench: Bench) -> Case:
    shuffle_labels(bench.images)
    return bench.case()


class Same(nn.Module):
    """The first image's features for every image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:1].expand_as(x) * torch.ones(len(x), *[1] * (x.ndim - 1))


@fault("10 cannot_fit", "head itself")
def one_answer(bench: Bench) -> Case:
    case = bench.case("stage=head")
    head = case.job.model.classifier.head
    head.layers = nn.Sequential(Same(), *head.layers)
    return case


@fault("11 leak", "10 of 56 test images")
def copies(bench: Bench) -> Case:
    for number in range(0, 20, 2):
        name = f"lying/{number}.png"
        shutil.copy(bench.images / "train" / name, bench.images / "test" / name)
    return bench.case()


@fault("12 augmented_evaluation", "test images")
def augmented_test(bench: Bench) -> Case:
    case = bench.case()
    served = case.data.dataset

    def augmented(split):
        dataset = served(split)
        if split == "test":
            dataset.augment, dataset.keys = Augment(horizontal_flip=True), range(len(dataset))
        return dataset

    case.data.dataset = augmented
    return case


@fault("14 few_images", "10 test images")
def ten_test_images(bench: Bench) -> Case:
    for kind in ("lying", "upright"):
        for path in sorted((bench.images / "test" / kind).iterdir())[5:]:
            path.unlink()
    return bench.case()


@fault("15 strong_augmentation", "rotation_range=90")
def turned(bench: Bench) -> Case:
    return bench.case("augment.rotation_range=90", "augment.width_shift_range=0.1")


@fault("16 small_images")
def enlarged(bench: Bench) -> Case:
    return bench.case("data.image_size=160")


@fault("17 dead_units", "48 of 48 units of fire6.squeeze_activation")
def dead(bench: Bench) -> Case:
    case = bench.case("backbone.weights=null", "stage=scratch")
    case.job.model.classifier.backbone.blocks.fire6.squeeze.bias.data.fill_(-1e3)
    return case


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def scaled(bench: Bench, factor: float) -> Case:
    case = bench.case("backbone.weights=null", "stage=scratch")
    head = case.job.model.classifier.head
    head.layers = nn.Sequential(Times(factor), *head.layers)
    return case


@fault("17 gradients: vanishing", "vanishes")
def vanishing(bench: Bench) -> Case:
    return scaled(bench, 1e-12)


@fault("17 gradients: exploding")
def exploding(bench: Bench) -> Case:
    return scaled(bench, 1e7)


@fault("17 not_finite", "stage3.0.branch1.0")
def overflow(bench: Bench) -> Case:
    """No weight is NaN; the module that makes it is found by a passage."""
    case = bench.case("backbone.weights=null", "stage=scratch", backbone="shufflenet_v2_x0_5")
    case.job.model.classifier.backbone.blocks.stage3[0].branch1[0].weight.data.fill_(3e38)
    return case


# What follows by necessity: squashed, dead or constant units leave the head nothing to fit with.
CONSEQUENCES = {
    "softmax": {"cannot_fit", "learning_rate"},
    "dead_units": {"gradients", "cannot_fit"},
    "gradients": {"cannot_fit"},
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_named_first(bench: Bench, name: str) -> None:
    plant, evidence = PLANTS[name]
    named_first(examine(plant(bench)), name.split()[1].removesuffix(":"), evidence)


def named_first(found: Examination, cause: str, evidence: str) -> None:
    assert found.not_examined == ()
    first = found.findings[0]
    assert (first.cause, first.severity != "note") == (cause, True)
    assert evidence in first.evidence
    assert causes(found, "error") <= {cause} | CONSEQUENCES.get(cause, set())


def test_what_is_advised_mends_a_leak(bench: Bench) -> None:
    PLANTS["11 leak"][0](bench)
    assert "leak" not in causes(examine(bench.case("data.on_leak=regroup"), quick=True), "error")


@pytest.mark.parametrize(
    ("backbone", "overrides"),
    [
        ("squeezenet1_1", []),
        ("squeezenet1_1", ["stage=head", *HIDDEN, "augment=light"]),
        ("squeezenet1_1", ["backbone.weights=null", "stage=scratch"]),
        ("shufflenet_v2_x0_5", []),
        ("shufflenet_v2_x0_5", ["backbone.weights=null", "stage=scratch"]),
    ],
)
def test_nothing_in_a_healthy_training(bench: Bench, backbone: str, overrides: list[str]) -> None:
    found = examine(bench.case(*overrides, backbone=backbone))
    assert (found.not_examined, causes(found, "error", "warning")) == ((), set())


# ---------------------------------------------------------------- after a training


def one_class(run: Path) -> None:
    answer_always(run, "green")


def overfitting(run: Path) -> None:
    plant_curves(run, *OVERFITTED)
    config = run / ".hydra/config.yaml"
    config.write_text(config.read_text().replace("hand_over: best", "hand_over: last"))


def frozen_moved(run: Path) -> None:
    """By one bit of one number."""
    path = run / "checkpoints/top/weights.safetensors"
    name = next(k for k in load_file(path) if ".fire8." in k and k.endswith("weight"))
    change(path, name, lambda t: t.view(-1)[0].copy_(t.view(-1)[0].nextafter(torch.tensor(9.0))))


def wrong_rows(run: Path) -> None:
    """The labels of one batch beside the predictions of the next."""
    path = run / "predictions/test.csv"
    header, *rows = read_rows(path)
    moved = [row[:2] + rows[(i + 16) % len(rows)][2:] for i, row in enumerate(rows)]
    write_rows(path, [header, *moved])


@pytest.mark.parametrize(
    ("plant", "evidence"),
    [
        pytest.param(one_class, "'green' is predicted for 120 of 120", id="13 one_class"),
        pytest.param(overfitting, "stage top: from epoch 4 on", id="18 overfitting"),
        pytest.param(frozen_moved, "first fire8", id="19 frozen_moved"),
        pytest.param(wrong_rows, "the row 16 further up holds", id="20 wrong_rows"),
    ],
)
def test_a_fault_of_a_run_is_named_first(
    run: Path, plant: Callable[[Path], None], evidence: str
) -> None:
    plant(run)
    named_first(examine_run(run), plant.__name__, evidence)


def test_nothing_in_a_healthy_run(trained: Path) -> None:
    found = examine_run(trained)
    assert (found.not_examined, causes(found, "error", "warning")) == ((), set())
