"""torchvision's own way: ImageFolder, transforms (v1), a DataLoader with workers, a plain loop."""

import os
import time

import common
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.models import vgg16


def loaders(data):
    normalize = transforms.Normalize(common.MEAN, common.STD)
    augment = transforms.Compose([
        transforms.Resize((common.SIZE, common.SIZE)),
        transforms.RandomAffine(
            40, translate=(0.2, 0.2), scale=(0.8, 1.2), shear=0.2,
            interpolation=transforms.InterpolationMode.BILINEAR,
        ),
        transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip(),
        transforms.ToTensor(), normalize,
    ])  # fmt: skip
    plain = transforms.Compose(
        [transforms.Resize((common.SIZE, common.SIZE)), transforms.ToTensor(), normalize]
    )
    train = datasets.ImageFolder(data / "train", augment)
    val = datasets.ImageFolder(data / "val", plain)
    settings = {"batch_size": common.BATCH, "num_workers": os.cpu_count() or 1}
    return (
        DataLoader(train, shuffle=True, persistent_workers=True, **settings),
        DataLoader(val, persistent_workers=True, **settings),
    )


def network(weights):
    model = vgg16()
    model.load_state_dict(load_file(weights), strict=False)
    model.avgpool = nn.Identity()
    model.classifier = nn.Sequential(
        nn.Linear(8192, common.HIDDEN), nn.ReLU(), nn.Dropout(common.DROPOUT),
        nn.Linear(common.HIDDEN, 1),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last)


def count_right(model, loader):
    model.eval()
    right = 0
    with torch.inference_mode():
        for images, labels in loader:
            logits = model(images.contiguous(memory_format=torch.channels_last))[:, 0]
            right += int(((logits > 0) == (labels == 1)).sum())
    return right, len(loader.dataset)


def train(model, optimizer, loader, steps, *, clock, phase):  # noqa: PLR0913
    model.train()
    clock.epoch(phase)
    for step, (images, labels) in enumerate(loader):
        if step == steps:
            break
        logits = model(images.contiguous(memory_format=torch.channels_last))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.step(phase)


def main():
    args, clock = common.arguments(), common.Clock()
    torch.manual_seed(args.seed)
    (loader, val), model = loaders(args.data), network(args.weights)
    model.features.requires_grad_(False)
    phases = [
        ("head", args.head_epochs, common.HEAD_RATE),
        ("top", args.top_epochs, common.TOP_RATE),
    ]
    result = (0, 1)
    for phase, epochs, rate in phases:
        if phase == "top":
            model.features[0 if args.everything else 24 :].requires_grad_(True)
        learning = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.RMSprop(learning, lr=rate, alpha=common.RHO, eps=common.EPSILON)
        for _ in range(epochs):
            train(model, optimizer, loader, args.steps, clock=clock, phase=phase)
            started = time.perf_counter()
            result = count_right(model, val)
            clock.val.append(time.perf_counter() - started)
    clock.report(*result)


if __name__ == "__main__":
    main()
