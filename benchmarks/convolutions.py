"""Each way of computing a 3 × 3 convolution, for the shapes of VGG16 and ResNet18.

    python benchmarks/convolutions.py

A row: channels in and out, the side of the input, images; for F(m × m, 3 × 3) with m = 2, 3, 4 how
many times as fast as the direct way it is, forward alone and with both gradients (then forward
directly where that is faster); the one that `tlx.models.winograd` takes has a star. Fastest of
several calls each, all in turn.
"""

import torch
from torch import nn

from tlx.models.winograd import TILES, Grid, Winograd, best_grid
from tlx.training.devices import keep_freed_memory
from tlx.training.precision import fastest

SHAPES = [  # channels in, out, side, images
    (64, 64, 150, 20), (64, 128, 75, 20), (128, 128, 75, 20), (128, 256, 37, 20),
    (256, 256, 37, 20), (256, 512, 18, 20), (512, 512, 18, 20), (512, 512, 9, 20),
    (512, 512, 28, 32), (512, 512, 14, 32), (512, 512, 7, 8), (512, 512, 7, 16),
    (64, 64, 56, 32), (128, 128, 28, 32), (256, 256, 14, 32), (512, 512, 7, 32),
]  # fmt: skip


def row(c: int, k: int, side: int, images: int) -> str:
    torch.manual_seed(0)
    conv = nn.Conv2d(c, k, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(images, c, side, side).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(images, k, side, side).contiguous(memory_format=torch.channels_last)
    cells = [f"{c:3} {k:3} {side:3} {images:3}"]
    settings = tuple(x.shape), (c, k), 1
    ahead = best_grid(*settings, back=False) is not None
    for learns in (False, True):
        x.requires_grad_(learns)

        def work(m: int | None, learns: bool = learns) -> None:
            with torch.set_grad_enabled(learns):
                grid = Grid.of(tuple(x.shape), 1, m) if m is not None else None
                fast = (x, conv.weight, conv.bias, grid, ahead or not learns)
                y = Winograd.apply(*fast) if grid else conv(x)
            if learns:
                y.backward(gradient)

        taken = best_grid(*settings, back=learns)
        times = {m: fastest(lambda m=m: work(m)) for m in (None, *TILES)}
        cells += [f"{'learning' if learns else 'forward'} {times[None] * 1e3:5.0f} ms"]
        cells += [f"{times[None] / times[m]:.2f}{'*' if taken and m == taken.m else ' '}"
                  for m in TILES]  # fmt: skip
    return "  ".join(cells)


def main() -> None:
    keep_freed_memory()
    for shape in SHAPES:
        print(row(*shape), flush=True)


if __name__ == "__main__":
    main()
