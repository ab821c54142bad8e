"""3 × 3 convolutions with a half to a quarter of the multiplications, on a CPU.

F(m × m, 3 × 3) of Lavin and Gray 2016, "Fast algorithms for convolutional neural networks" (arXiv
1509.09308), as matrix products. In float32 values differ from the direct convolution's by rounding
alone, some 1e-6 of their size. In bfloat16 a layer's are off by 1 to 3 %, where direct ones are by
0.3 %: there only what learns takes this way, and only while it learns; evaluation is direct.
Processors with AMX, whose products are faster still, and without AVX-512 compute it directly.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tlx.models.processor import cpu_flags

TILES = (2, 3, 4)  # m; larger ones round too coarsely
# For 3 and 4 those that round least of some tried: a third less than the usual 0, 1, -1, 2, -2.
POINTS = {2: (0, 1, -1), 3: (0, 0.5, -1, 2), 4: (0, 1, -1, 0.5, -2)}
# The transforms of inputs and outputs are exact in bfloat16, that of weights times these squared.
DENOMINATORS = {2: 1, 3: 9, 4: 15}
PART_BYTES = 1 << 26  # of transformed tiles at once; a layer takes about four times as many
# Up to PART_BYTES of them stay for the backward pass; more are computed again.

# Costs in multiplications of a matrix product, fitted to benchmarks/convolutions.py: to transform a
# channel of one value of a tile; to transform the weights, in rows of the product. float32 on cores
# with AVX2, bfloat16 with AVX-512. Whatever changes here changes features by rounding: raise
# feature_store.FORMAT with it.
AHEAD = (130, 32)
BACK = (60, 32)  # less, as direct gradients are slow
BF16 = (160, 64)  # both ways
ENOUGH = 1.25  # times as fast


def use_winograd(model: nn.Module) -> None:
    """Let each 3 × 3 convolution of `model` compute the faster way for the shape it meets.

    Names and weights stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_possible(module):
            module.__class__ = WinogradConv2d


def _is_possible(conv: nn.Conv2d) -> bool:
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.padding in ((0, 0), (1, 1))
    )


class WinogradConv2d(nn.Conv2d):
    """A 3 × 3 `Conv2d` that takes Winograd's way where it is faster.

    On other devices, in other precisions, compiled or exported it is a `Conv2d`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        dtype = self._dtype(input)
        learns = torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad)
        if dtype is None or (dtype == torch.bfloat16 and not learns):
            return super().forward(input)
        channels = self.in_channels, self.out_channels
        settings = tuple(input.shape), channels, int(self.padding[0]), dtype
        ahead = best_grid(*settings, back=False)
        grid = best_grid(*settings, back=True) if learns else ahead
        if grid is None:
            return super().forward(input)
        x = input.to(dtype)
        output: Tensor = Winograd.apply(x, self.weight, self.bias, grid, ahead is not None)
        return output

    def _dtype(self, x: Tensor) -> torch.dtype | None:
        """Of the arithmetic; None where there is only the direct way."""
        if (
            x.dim() != 4
            or x.device.type != "cpu"
            or self.weight.dtype != torch.float32
            or torch.compiler.is_compiling()
            or torch._C._get_tracing_state()
        ):
            return None
        if not torch.is_autocast_enabled("cpu"):
            return torch.float32 if x.dtype == torch.float32 else None
        bf16 = torch.get_autocast_dtype("cpu") == torch.bfloat16
        return torch.bfloat16 if bf16 and bf16_pays() else None


def bf16_pays() -> bool:
    """On the processors that the costs were fitted on."""
    return "avx512_bf16" in cpu_flags() and "amx_bf16" not in cpu_flags()


@cache
def best_grid(
    shape: tuple[int, ...],
    channels: tuple[int, int],
    padding: int,
    dtype: torch.dtype = torch.float32,
    *,
    back: bool,
) -> "Grid | None":
    """The fastest way from inputs (B, C, H, W) to outputs, or back to gradients; None: directly.

    It follows from shapes and precision alone, so that runs can be repeated.
    """
    products = channels[0] * channels[1]
    channel, weight_rows = BF16 if dtype == torch.bfloat16 else BACK if back else AHEAD
    beside = channel * sum(channels)

    def cost(grid: Grid) -> int:
        rows = grid.rows(shape[0])
        return (grid.m + 2) ** 2 * (rows * (products + beside) + weight_rows * products)

    best = min((Grid.of(shape, padding, m) for m in TILES), key=cost)
    direct = 9 * shape[0] * best.height * best.width * products
    return best if direct > ENOUGH * cost(best) else None


@cache
def transforms(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of products into outputs (m², t²), of weights (t², 9), of inputs (t², t²); t = m + 2.

    Cook's and Toom's construction: polynomials are multiplied by their values at t - 1 points and
    their first coefficient.
    """
    points = np.array(POINTS[m], dtype=float)
    others = [np.delete(points, i) for i in range(m + 1)]
    scale = np.array([np.prod(p - rest) for p, rest in zip(points, others, strict=True)])
    first = np.eye(m + 2)[-1]
    outputs = np.vstack([np.vander(points, m, increasing=True), first[-m:]]).T
    weights = np.vstack([np.vander(points, 3, increasing=True) / scale[:, None], first[-3:]])
    inputs = np.array([[*np.poly(rest)[::-1], 0] for rest in others])
    inputs = np.vstack([inputs, np.poly(points)[::-1]])
    a, g, b = (torch.from_numpy(np.kron(x, x)).float() for x in (outputs, weights, inputs))
    return a, g, b


class Grid(NamedTuple):
    """Tiles of m × m outputs, each made from t × t inputs; t = m + 2."""

    height: int  # of the outputs
    width: int
    down: int  # tiles
    across: int
    padding: int
    m: int

    @classmethod
    def of(cls, shape: tuple[int, ...], padding: int, m: int) -> "Grid":
        """For inputs (B, C, H, W)."""
        height, width = (side + 2 * padding - 2 for side in shape[2:])
        return cls(height, width, -(-height // m), -(-width // m), padding, m)

    def rows(self, images: int) -> int:
        return images * self.down * self.across

    def parts(self, x: Tensor, outputs: int) -> Iterator[slice]:
        """Of the batch, for so many channels of outputs."""
        row = x.element_size() * (self.m + 2) ** 2 * max(x.shape[1], outputs)
        images = max(1, PART_BYTES // (row * self.rows(1)))
        return (slice(i, i + images) for i in range(0, len(x), images))

    def _edges(self) -> tuple[int, int]:
        """Rows and columns that the tiles' inputs cover."""
        return self.down * self.m + 2, self.across * self.m + 2

    def tiles(self, x: Tensor) -> Tensor:
        """(t², rows, C): transformed, of x (B, C, H, W)."""
        (n, c, h, w), p, m = x.shape, self.padding, self.m
        padded = x.new_zeros(n, *self._edges(), c)
        padded[:, p : p + h, p : p + w] = x.permute(0, 2, 3, 1)
        image, row, column, one = padded.stride()
        size = (n, self.down, self.across, m + 2, m + 2, c)
        tiles = padded.as_strided(size, (image, row * m, column * m, row, column, one))
        return _by_value(transforms(m)[2], tiles.reshape(self.rows(n), -1, c))

    def summed(self, tiles: Tensor, n: int) -> Tensor:
        """The gradient of `tiles`: (n, H, W, C) of (t², rows, C)."""
        m, p = self.m, self.padding
        t, c = m + 2, tiles.shape[-1]
        padded = tiles.new_zeros(n, *self._edges(), c)
        tiles = _each(transforms(m)[2].T, tiles.transpose(0, 1))
        tiles = tiles.view(n, self.down, self.across, t, t, c)
        for i in range(t):
            for j in range(t):
                places = padded[:, i : i + self.down * m : m, j : j + self.across * m : m]
                places += tiles[:, :, :, i, j]
        return padded[:, p : self.height + 2 - p, p : self.width + 2 - p]

    def outputs(self, products: Tensor, n: int) -> Tensor:
        """(n, H, W, K) of (t², rows, K)."""
        m, k = self.m, products.shape[-1]
        y = _each(transforms(m)[0], products.transpose(0, 1))
        y = y.view(n, self.down, self.across, m, m, k).transpose(2, 3)
        y = y.reshape(n, self.down * m, self.across * m, k)
        return y[:, : self.height, : self.width]

    def apart(self, dy: Tensor) -> Tensor:
        """The gradient of `outputs`: (t², rows, K) of (B, K, H, W)."""
        (n, k, h, w), m = dy.shape, self.m
        y = F.pad(dy.permute(0, 2, 3, 1), (0, 0, 0, self.across * m - w, 0, self.down * m - h))
        y = y.reshape(n, self.down, m, self.across, m, k).transpose(2, 3)
        return _by_value(transforms(m)[0].T, y.reshape(self.rows(n), m * m, k))


def transformed(weight: Tensor, m: int, dtype: torch.dtype) -> Tensor:
    """(t², K, C) of weights (K, C, 3, 3) float32."""
    nine = weight.permute(0, 2, 3, 1).reshape(len(weight), 9, -1)
    transform, factor = _of_weights(m, dtype)
    nine = nine if factor == 1 else nine * factor
    return _by_value(transform, nine.to(dtype))


def gradient(du: Tensor, m: int) -> Tensor:
    """Of weights (K, C, 3, 3) float32, by that of `transformed` (t², K, C)."""
    transform, factor = _of_weights(m, du.dtype)
    nine = _each(transform.T, du.transpose(0, 1)).float()
    if factor != 1:
        nine *= factor
    return nine.view(len(nine), 3, 3, -1).permute(0, 3, 1, 2)


def _of_weights(m: int, dtype: torch.dtype) -> tuple[Tensor, float]:
    """(t², 9) and a factor, whose product is the transform."""
    square = DENOMINATORS[m] ** 2 if dtype == torch.bfloat16 else 1
    return square * transforms(m)[1], 1 / square


def _each(transform: Tensor, tiles: Tensor, out: Tensor | None = None) -> Tensor:
    """(N, a, C): a transform (a, b) of each of (N, b, C), which fit the processor's caches."""
    return torch.bmm(transform.to(tiles.dtype).expand(len(tiles), -1, -1), tiles, out=out)


def _by_value(transform: Tensor, tiles: Tensor) -> Tensor:
    """(a, N, C): what `_each` gives.

    Side by side in bfloat16, whose products are then a fifth faster; in float32 they are not.
    """
    if tiles.dtype != torch.bfloat16:
        return _each(transform, tiles).transpose(0, 1)
    values = tiles.new_empty(len(transform), len(tiles), tiles.shape[2])
    _each(transform, tiles, out=values.transpose(0, 1))
    return values


class Winograd(torch.autograd.Function):
    """Transformed tiles times transformed weights: a matrix product for each of a tile's values."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, grid: Grid, fast_ahead: bool
    ) -> Tensor:
        """`fast_ahead`: else the outputs are computed directly, only gradients by the grid."""
        ctx.grid = grid
        if not fast_ahead:
            ctx.save_for_backward(x, weight, None, None)
            return F.conv2d(x, weight, bias, padding=grid.padding)
        k = len(weight)
        u = transformed(weight, grid.m, x.dtype)
        kept: Tensor | None = None
        size = (len(x), k, grid.height, grid.width)
        # not a view: an activation that works in place may follow
        y = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        for part in grid.parts(x, k):
            tiles = grid.tiles(x[part])
            if ctx.needs_input_grad[1] and len(x[part]) == len(x):
                kept = tiles
            products = torch.bmm(tiles, u.transpose(1, 2))
            del tiles
            outputs = grid.outputs(products, len(x[part]))
            del products
            outputs = outputs if bias is None else outputs + bias.to(x.dtype)
            y[part] = outputs.permute(0, 3, 1, 2)
        ctx.save_for_backward(x, weight, u if ctx.needs_input_grad[0] else None, kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, u, kept = ctx.saved_tensors
        grid: Grid = ctx.grid
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if u is None and needs_x:
            u = transformed(weight, grid.m, x.dtype)
        du: Tensor | None = None
        dx = torch.empty_like(x, memory_format=torch.channels_last) if needs_x else None
        for part in grid.parts(x, len(weight)) if needs_x or needs_weight else ():
            products = grid.apart(dy[part])
            if needs_weight:
                tiles = grid.tiles(x[part]) if kept is None else kept
                pair = products.transpose(1, 2), tiles
                product = torch.bmm(*pair)
                du = product if du is None else du.float().add_(product)
            if dx is not None:
                summed = grid.summed(torch.bmm(products, u), len(x[part]))
                dx[part] = summed.permute(0, 3, 1, 2)
        dw = gradient(du.to(x.dtype), grid.m) if du is not None else None
        return dx, dw, dy.sum((0, 2, 3), dtype=torch.float32) if needs_bias else None, None, None
