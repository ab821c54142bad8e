"""Whether bfloat16 pays on this processor, found by trying."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # Intel, Intel and AMD, Arm
ENOUGH = 1.2  # times as fast as float32: below that the coarser numbers are not worth it
SECONDS = 0.05  # of trying, for each precision

log = logging.getLogger(__name__)


def bf16_on_cpu() -> tuple[bool, str]:
    """Whether to compute in bfloat16, and why.

    Only processors with instructions for it are tried: on others a product can take 70 times as
    long as in float32.
    """
    found = sorted(FLAGS & cpu_flags())
    if not found:
        return False, "the processor has no bfloat16 instructions"
    full, half = rate(torch.float32), rate(torch.bfloat16)
    reason = (
        f"with {found[0]}, a convolution runs at {half / 1e9:.0f} GFLOP/s in bfloat16 and at "
        f"{full / 1e9:.0f} in float32"
    )
    return half > ENOUGH * full, reason


def rate(dtype: torch.dtype) -> float:
    """Operations a second of a VGG-like convolution, forward and backward, on all threads."""
    channels, side = 64, 28
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, channels, side, side, generator=generator).to(dtype)
    w = torch.randn(channels, channels, 3, 3, generator=generator).to(dtype)
    x, w = (t.contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, w))

    def work() -> None:
        F.conv2d(x, w, padding=1).sum().backward()  # type: ignore[no-untyped-call]

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


def cpu_flags() -> set[str]:
    """Empty where the system does not tell (only Linux does)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return set(flags[0].split(":", 1)[1].split()) if flags else set()
