"""What the PyTorch scripts here share: a tiny network, random images, and what is measured."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS = 8  # an epoch


def network(dropout=0.0):
    """A backbone of two blocks with BatchNorm, its statistics "pretrained", and a new head."""
    torch.manual_seed(0)
    backbone = nn.Sequential(block(3, 8, dropout), block(8, 8, dropout))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    for _ in range(50):  # on images with mean 0; those trained on have mean 1
        backbone(torch.randn(16, 3, 16, 16))
    return backbone, head


def block(inputs, outputs, dropout):
    convolution = nn.Conv2d(inputs, outputs, 3, 2)
    nn.init.zeros_(convolution.bias)  # as torchvision's VGG does
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(dropout))


def loader(shuffle=False):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS * 8, 3, 16, 16, generator=generator) + 1
    labels = torch.randint(3, (len(images),), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=shuffle)


def state(module):
    """A copy of the weights and buffers."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def moved(before, after, part=""):
    """By how much the tensors with `part` in their names moved at most."""
    pairs = [(before[name], after[name]) for name in before if part in name]
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


def mode_gap(module, images):
    """How far the outputs in the mode `module` is in are from those in evaluation, at most."""
    before, modes = state(module), {m: m.training for m in module.modules()}
    with torch.no_grad():
        as_trained = module(images)
        module.load_state_dict(before)  # BatchNorm may have moved
        evaluated = module.eval()(images)
    for part, training in modes.items():
        part.training = training
    return (as_trained - evaluated).abs().max().item()
