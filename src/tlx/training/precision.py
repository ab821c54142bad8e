"""Whether bfloat16 pays on this processor, found by trying."""

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from tlx.models.processor import BF16_FLAGS, cpu_flags
from tlx.models.winograd import use_winograd

ENOUGH = 1.2  # times as fast as float32: below that the coarser numbers are not worth it
SECONDS = 0.05  # of trying, for each precision

log = logging.getLogger(__name__)


def bf16_on_cpu() -> tuple[bool, str]:
    """Whether to compute in bfloat16, and why.

    Only processors with instructions for it are tried: on others a product can take 70 times as
    long as in float32.
    """
    found = sorted(BF16_FLAGS & cpu_flags())
    if not found:
        return False, "the processor has no bfloat16 instructions"
    full, half = rate(torch.float32), rate(torch.bfloat16)
    reason = (
        f"with {found[0]}, a convolution runs at {half / 1e9:.0f} GFLOP/s in bfloat16 and at "
        f"{full / 1e9:.0f} in float32"
    )
    return half > ENOUGH * full, reason


def rate(dtype: torch.dtype) -> float:
    """Operations a second of VGG's kind of convolution, forward and backward, on all threads.

    As training computes it: by Winograd's algorithm where that is faster.
    """
    channels, side = 512, 14
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, channels, side, side, generator=generator).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    conv = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1))
    conv.to(memory_format=torch.channels_last)
    use_winograd(conv)

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = conv(x)
        y.sum().backward()

    operations = 3 * 2 * 9 * channels**2 * side**2 * len(x)  # backward counts twice
    return operations / fastest(work)


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of two or more runs after one to warm up.

    Other programs only make a run slower, so the fastest says most of the processor.
    """
    work()
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < 2 or time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)
