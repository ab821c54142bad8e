"""A stage's arithmetic against a plain PyTorch loop."""

import multiprocessing

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import get_model
from torchvision.transforms.v2.functional import normalize

from tlx.composition import compose
from tlx.config import parse
from tlx.data.datasets import ImageDataset
from tlx.data.samplers import EpochSampler
from tlx.training.job import prepare
from tlx.training.module import StageModule
from tlx.training.run import train_stages


def job(image_folder, tmp_path, *overrides):
    config = parse(
        compose(
            [
                "backbone=resnet18", "backbone.weights=null", "data=folder",
                f"data.root={image_folder}", "data.image_size=32", "data.batch_size=4",
                "data.keep_together=none", "trainer=cpu", "verbosity=plain", "report=none",
                *overrides,
            ]
        )
    )  # fmt: skip
    return prepare(config, tmp_path)


def torchvision_copy(classifier):
    """torchvision's own network with the same weights, its `fc` replaced by the head's layer."""
    model = get_model("resnet18", weights=None)
    model.fc = nn.Linear(512, classifier.head.output.out_features)
    state = {}
    for key, value in classifier.state_dict().items():
        name = key.removeprefix("backbone.blocks.").removeprefix("stem.")
        state[name.replace("head.layers.output", "fc")] = value.clone()
    model.load_state_dict(state)
    return model


UNEVEN = ["label_smoothing=0.2", "data.class_weights={green: 3}", "data.sampling=balanced"]


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_a_frozen_backbone_stage_equals_a_plain_loop(
    image_folder, tmp_path, monkeypatch, loss, uneven
):
    for picture in (image_folder / "blue").iterdir():
        picture.unlink()
    (image_folder / "blue").rmdir()
    if uneven:
        for number in (0, 1, 2):
            (image_folder / "red" / f"{number}.png").unlink()
    run = job(
        image_folder, tmp_path, "stage=head", "stage.head.epochs=7", "data.batch_size=3",
        "data.val=0.25", "data.test=0.25", f"loss={loss}", "optimizer=sgd", "optimizer.lr=0.01",
        "scheduler=constant", "monitor=loss", "trainer.precision=32", *(UNEVEN if uneven else []),
    )  # fmt: skip
    plain = torchvision_copy(run.model.classifier)

    # The plain loop: frozen network in evaluation mode, SGD on the last layer alone.
    samples = run.manifest.split("train")
    labels = [run.manifest.classes.index(s.label) for s in samples]
    dataset = ImageDataset(
        [run.manifest.root / s.path for s in samples], labels, run.model.preprocess
    )
    smoothing, weights = 0.2 * uneven, torch.ones(2)
    if uneven:
        weights = torch.tensor([3.0, 1.0])  # green, red
        weights *= len(labels) / weights[labels].sum()
    balance_by = labels if uneven else None
    sampler = EpochSampler(len(dataset), run.config.seed, balance_by=balance_by)
    plain.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    plain.fc.requires_grad_(True)
    optimizer = torch.optim.SGD(plain.fc.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for epoch in range(7):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for start in range(0, len(order), 3):
            items = [dataset[key] for key in order[start : start + 3]]
            if len(items) == 1:
                continue
            images = torch.stack([image for image, _, _ in items]).float() / 255
            images = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            targets = torch.tensor([target for _, target, _ in items])
            logits = plain(images.contiguous(memory_format=torch.channels_last))
            if loss == "binary":
                smooth = targets * (1 - smoothing) + smoothing / 2
                value = F.binary_cross_entropy_with_logits(
                    logits[:, 0], smooth, weight=weights[targets]
                )
            else:
                each = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
                value = (each * weights[targets]).mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())

    seen = []
    original = StageModule.training_step

    def spy(self, batch, batch_idx):
        value = original(self, batch, batch_idx)
        seen.append(value.item())
        return value

    monkeypatch.setattr(StageModule, "training_step", spy)
    (result,) = train_stages(run)
    assert len(seen) == result.steps == len(losses) >= (14 if uneven else 20)
    torch.testing.assert_close(seen, losses, atol=1e-6, rtol=0)
    last = torch.load(tmp_path / "checkpoints/head/last.ckpt", weights_only=True)["state_dict"]
    weight = last["classifier.head.layers.output.weight"]
    torch.testing.assert_close(weight, plain.fc.weight.detach(), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["on", "off"])
def test_compiled_and_eager_agree(image_folder, tmp_path, monkeypatch, cache):
    """In a process of its own: one that has compiled cannot be forked, which other tests do."""
    arguments = (image_folder, tmp_path, monkeypatch, cache)
    process = multiprocessing.get_context("fork").Process(target=compare_compiled, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


def compare_compiled(image_folder, tmp_path, monkeypatch, cache):
    losses = {}
    original = StageModule.training_step

    def spy(self, batch, batch_idx):
        value = original(self, batch, batch_idx)
        losses.setdefault(self._compiled is not None, []).append(value.item())
        return value

    monkeypatch.setattr(StageModule, "training_step", spy)
    names = []
    for compiled in ("true", "false"):
        run = job(
            image_folder, tmp_path / compiled, "stage=finetune", "stage.head.epochs=3",
            "stage.top.epochs=2", "data.batch_size=7",  # BatchNorm over 2 is ill-conditioned
            f"cache={cache}", f"trainer.compile={compiled}", "optimizer=sgd",
            "trainer.precision=32",
        )  # fmt: skip
        train_stages(run)
        last = torch.load(tmp_path / compiled / "checkpoints/top/last.ckpt", weights_only=True)
        names.append(list(last["state_dict"]))
    assert names[0] == names[1]
    assert len(losses[True]) == len(losses[False]) > 8
    torch.testing.assert_close(losses[True], losses[False], atol=1e-5, rtol=0)


def test_clipping_works_in_bf16_with_a_fused_optimizer(image_folder, tmp_path, monkeypatch):
    norms = []

    def spy(self, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters])))

    original = StageModule.configure_gradient_clipping

    def clip(self, optimizer, *args, **kwargs):
        original(self, optimizer, *args, **kwargs)
        spy(self, optimizer)

    monkeypatch.setattr(StageModule, "configure_gradient_clipping", clip)
    run = job(
        image_folder, tmp_path, "stage=head", "stage.head.epochs=1", "optimizer=adam",
        "trainer.precision=bf16-mixed", "trainer.clip=0.01",
    )  # fmt: skip
    train_stages(run)
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)
    assert len(norms) > 1
