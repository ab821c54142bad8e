"""Why a softmax in the hidden layer does not learn: how much of the gradient passes it.

    python benchmarks/reproductions/gradient_norms.py [--steps 0 20] [--seeds 0 1 2]

On the stand-in of flowers_vgg16_relu and flowers_vgg16_softmax at 112 px: after so many of their
own steps, the mean of the hidden layer's outputs, and the norm of the gradient at the output
layer, the hidden layer and block5; all averaged over the seeds.
"""

import argparse
from statistics import fmean

import torch
from jobs import prepared
from torch import Tensor, nn

from tlx.models.outputs import sample_losses
from tlx.training.inputs import image_data
from tlx.training.optim import build_optimizer
from tlx.training.unfreezing import apply_stage


def norm(module: nn.Module) -> float:
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return float(torch.cat(gradients).norm())


def measure(activation: str, seed: int, steps: list[int]) -> list[list[float]]:
    """A row for each of `steps`: mean output, and three norms of gradients."""
    job = prepared(f"flowers_vgg16_{activation}", "data.image_size=112", f"seed={seed}")
    classifier, stage = job.model.classifier, job.config.stages[0]
    apply_stage(classifier, stage)
    optimizer = build_optimizer(stage, classifier)
    layers = dict(classifier.head.layers.named_children())
    outputs: list[Tensor] = []
    layers["activation1"].register_forward_hook(lambda *call: outputs.append(call[2].detach()))
    rows = []
    for step, (images, labels, _) in enumerate(image_data(job).train_dataloader()):
        if step > max(steps):
            break
        optimizer.zero_grad()
        logits = classifier(job.model.preprocess.normalize(images))
        sample_losses(logits, labels).mean().backward()
        if step in steps:
            parts = (layers["output"], layers["linear1"], classifier.backbone.blocks.block5)
            rows.append([float(outputs[-1].mean()), *(norm(part) for part in parts)])  # type: ignore[arg-type]
        optimizer.step()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 20])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    own = parser.parse_args()
    print("| hidden layer | step | its mean output | gradient: output | hidden | block5 |")
    print("|---|---|---|---|---|---|")
    for activation in ("relu", "softmax"):
        seeds = [measure(activation, seed, own.steps) for seed in own.seeds]
        for step, rows in zip(sorted(own.steps), zip(*seeds, strict=True), strict=True):
            means = (fmean(column) for column in zip(*rows, strict=True))
            print(f"| {activation} | {step} |", " | ".join(f"{m:.3g}" for m in means), "|")


if __name__ == "__main__":
    main()
