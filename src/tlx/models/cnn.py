"""cnn4: the small network that introductions to Keras train from scratch."""

from itertools import pairwise

from torch import nn

CHANNELS = (3, 32, 64, 128, 128)


def cnn4() -> nn.Sequential:
    """Four blocks, each a 3×3 convolution without padding, a ReLU and a 2×2 pool, as Keras fills
    them (Glorot & Bengio 2010, uniform; zero bias)."""
    network = nn.Sequential()
    for number, (inputs, outputs) in enumerate(pairwise(CHANNELS), 1):
        block = nn.Sequential()
        block.add_module("conv", _convolution(inputs, outputs))
        block.add_module("relu", nn.ReLU(inplace=True))
        block.add_module("pool", nn.MaxPool2d(2))
        network.add_module(f"block{number}", block)
    return network


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel_size=3)
    assert layer.bias is not None
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
