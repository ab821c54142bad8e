"""What the machine's processor has instructions for."""

from functools import cache
from pathlib import Path

BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # Intel, Intel and AMD, Arm


@cache
def cpu_flags() -> frozenset[str]:
    """Empty where the system does not tell (only Linux does)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return frozenset(flags[0].split(":", 1)[1].split()) if flags else frozenset()
