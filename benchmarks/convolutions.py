"""Each way of computing a 3 × 3 convolution, for the shapes of VGG16 and ResNet18.

    python benchmarks/convolutions.py

A row: channels in and out, the side of the input, images; for F(m × m, 3 × 3) with m = 2, 3, 4 how
many times as fast as the direct way it is, forward alone and with both gradients (then forward
directly where that is faster); where the processor has instructions for it, with both gradients in
bfloat16 too. The one that `tlx.models.winograd` takes has a star. Fastest of several calls each,
all in turn.
"""

from functools import partial

import torch
from torch import Tensor, nn

from tlx.models.processor import BF16_FLAGS, cpu_flags
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
    x, gradient = (
        torch.randn(images, channels, side, side).contiguous(memory_format=torch.channels_last)
        for channels in (c, k)
    )
    cells = [f"{c:3} {k:3} {side:3} {images:3}"]
    ways = [("forward", torch.float32), ("learning", torch.float32), ("bf16", torch.bfloat16)]
    for name, dtype in ways if BF16_FLAGS & cpu_flags() else ways[:-1]:
        learns = name != "forward"
        settings = tuple(x.shape), (c, k), 1, dtype
        half = dtype == torch.bfloat16
        ahead = half or not learns or best_grid(*settings, back=False) is not None
        works = {
            m: partial(
                work, conv, x.detach().to(dtype), gradient.to(dtype) if learns else None, m, ahead
            )
            for m in (None, *TILES)
        }
        times = {m: fastest(w) for m, w in works.items()}
        taken = best_grid(*settings, back=learns)
        cells += [f"{name} {times[None] * 1e3:5.0f} ms"]
        cells += [f"{times[None] / times[m]:.2f}{'*' if taken and m == taken.m else ' '}"
                  for m in TILES]  # fmt: skip
    return "  ".join(cells)


def work(conv: nn.Conv2d, x: Tensor, gradient: Tensor | None, m: int | None, ahead: bool) -> None:
    """F(m × m, 3 × 3), or directly; back too where there is a gradient."""
    x.requires_grad_(gradient is not None)
    bf16 = x.dtype == torch.bfloat16
    with (
        torch.set_grad_enabled(gradient is not None),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        grid = Grid.of(tuple(x.shape), 1, m) if m is not None else None
        y = Winograd.apply(x, conv.weight, conv.bias, grid, ahead) if grid else conv(x)
    if gradient is not None:
        y.backward(gradient)


def main() -> None:
    keep_freed_memory()
    for shape in SHAPES:
        print(row(*shape), flush=True)


if __name__ == "__main__":
    main()
