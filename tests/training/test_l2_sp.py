"""L2-SP against its penalty, written into the loss of a plain loop."""

import pytest
import torch
import torch.nn.functional as F

from test_module import job
from tlx.training.module import StageModule
from tlx.training.run import train_stages
from tlx.training.unfreezing import apply_stage

STAGE = [
    "backbone=shufflenet_v2_x0_5", "stage=scratch", "stage.scratch.epochs=3",
    "stage.scratch.train_from=conv5", "optimizer=sgd", "optimizer.lr=0.1", "cache=off",
    "optimizer.weight_decay=0.2", "scheduler=constant", "trainer.precision=32",
]  # fmt: skip


@pytest.fixture
def batches(monkeypatch):
    seen = []
    original = StageModule.training_step

    def spy(self, batch, batch_idx):
        seen.append(batch)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(StageModule, "training_step", spy)
    return seen


def plain_loop(run, batches, *, accumulate, clip, strength=None):
    """SGD whose loss has the penalty in it; the head's weights decay, norms and biases do not."""
    model, (stage,) = run.model.classifier, run.config.stages
    apply_stage(model, stage)
    decayed = {k: p for k, p in model.named_parameters() if p.requires_grad and p.dim() > 1}
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() == 1]
    held = {k: p.detach().clone() for k, p in decayed.items() if not k.startswith("head.")}
    toward_zero = [p for k, p in decayed.items() if strength is None or k not in held]
    free = plain + [p for k, p in decayed.items() if strength is not None and k in held]
    optimizer = torch.optim.SGD(
        [{"params": toward_zero, "weight_decay": 0.2}, {"params": free}], lr=0.1, momentum=0.9
    )
    an_epoch = len(batches) // stage.epochs
    for epoch in range(stage.epochs):
        of_epoch = batches[epoch * an_epoch : (epoch + 1) * an_epoch]
        for start in range(0, an_epoch, accumulate):
            optimizer.zero_grad()
            together = of_epoch[start : start + accumulate]
            count = sum(len(labels) for _, labels, _ in together)
            for images, labels, _ in together:
                inputs = run.model.preprocess.normalize(images)
                (F.cross_entropy(model(inputs), labels, reduction="sum") / count).backward()
            if strength is not None:
                away = sum((decayed[k] - w0).square().sum() for k, w0 in held.items())
                (strength / 2 * away).backward()
            if clip is not None:
                learning = [p for p in model.parameters() if p.requires_grad]
                torch.nn.utils.clip_grad_norm_(learning, clip)
            optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate": 1, "clip": None, "strength": 0.3},
        {"accumulate": 3, "clip": 0.5, "strength": 0.3},
        {"accumulate": 3, "clip": 0.05, "strength": None},
    ],
)
def test_a_stage_equals_a_plain_loop(image_folder, tmp_path, batches, settings):
    values = {name: "null" if v is None else v for name, v in settings.items()}
    overrides = [
        *STAGE,
        f"trainer.accumulate={values['accumulate']}",
        f"trainer.clip={values['clip']}",
        f"stage.scratch.l2_sp={values['strength']}",
    ]
    run = job(image_folder, tmp_path, *overrides)
    train_stages(run)
    frozen = {f"classifier.{k}": v for k, v in run.model.classifier.state_dict().items()}
    last = (
        frozen
        | torch.load(tmp_path / "checkpoints/scratch/last.ckpt", weights_only=True)["state_dict"]
    )
    (tmp_path / "plain").mkdir()
    expected = plain_loop(job(image_folder, tmp_path / "plain", *overrides), batches, **settings)
    assert len(batches) >= 9
    for name, tensor in expected.items():
        torch.testing.assert_close(last[f"classifier.{name}"], tensor, atol=2e-5, rtol=1e-4)
