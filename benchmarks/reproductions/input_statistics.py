"""What the first layer really receives: pixels as the weights know them, and three mistakes.

    python benchmarks/reproductions/input_statistics.py [LABEL …]

A label is a stand-in's, such as resnet50_bottleneck-vgg16. Mean and deviation are over all pixels
of the 394 val images; `features` compares what the backbone makes of 32 of them with what it
makes of the right input: the mean correlation.
"""

import sys
from dataclasses import replace

import torch
from jobs import prepared
from torch import Tensor

from tlx.models.preprocess import INPUTS
from tlx.training.inputs import image_data


def correlation(first: Tensor, second: Tensor) -> float:
    """The mean over images; features (N, …)."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (first, second))
    return float(torch.cosine_similarity(a, b).mean())


def show(label: str) -> None:
    job = prepared(label)
    images = torch.cat([batch[0] for batch in image_data(job).val_dataloader()])
    backbone, right = job.model.classifier.backbone.eval(), job.model.preprocess
    with torch.no_grad():
        features = backbone(right.normalize(images[:32]))
        for name in INPUTS:
            preprocess = replace(right, **INPUTS[name])
            received = preprocess.normalize(images)
            alike = correlation(backbone(received[:32]), features)
            low, high = float(received.min()), float(received.max())
            print(f"| {label} | {name} | {received.mean():.3g} | {received.std():.3g} "
                  f"| {low:.3g} to {high:.3g} | {alike:.3f} |")  # fmt: skip


def main() -> None:
    print("| stand-in | input | mean | deviation | range | features alike |")
    print("|---|---|---|---|---|---|")
    for label in sys.argv[1:] or ["resnet50_bottleneck-vgg16", "resnet50_bottleneck-squeezenet1_1"]:
        show(label)


if __name__ == "__main__":
    main()
