"""What the processor can do at most, and how near the frozen prefix of VGG16 comes to it.

    python benchmarks/limit.py

Products of two 2048×2048 matrices in float32 and, where the processor has instructions for it, in
bfloat16; then VGG16's convolutions on 20 images of 150 pixels, as the feature cache runs them, in
the precision that `trainer.precision=auto` takes. Rates count the arithmetic of products and
convolutions alone. The fastest of several turns counts: other programs only make it slower.
"""

import json
import sys

import torch
from torch import nn

from tlx.models.backbones import build_backbone
from tlx.training.precision import FLAGS, bf16_on_cpu, cpu_flags, fastest

SIZE, BATCH, SIDE = 150, 20, 2048


def product(dtype: torch.dtype) -> float:
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return 2 * SIDE**3 / fastest(lambda: a @ b)


def operations(network: nn.Module, images: torch.Tensor) -> int:
    """Of the convolutions in one forward pass."""
    counts: list[int] = []

    def count(module: nn.Conv2d, inputs: object, output: torch.Tensor) -> None:
        counts.append(2 * output.numel() * module.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(images)
    for hook in hooks:
        hook.remove()
    return sum(counts)


def main() -> None:
    bf16, reason = bf16_on_cpu()
    network = build_backbone("vgg16").eval().to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    found = {"threads": torch.get_num_threads(), "precision": "bf16" if bf16 else "float32"}
    with torch.inference_mode():
        rates = {"product_float32": product(torch.float32)}
        if FLAGS & cpu_flags():
            rates["product_bf16"] = product(torch.bfloat16)
        work = operations(network, images)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            rates["prefix"] = work / fastest(lambda: network(images))
    limit = rates["product_bf16" if bf16 else "product_float32"]
    found |= {f"{name}_gflops": round(rate / 1e9, 1) for name, rate in rates.items()}
    found |= {"prefix_share": round(rates["prefix"] / limit, 3), "reason": reason}
    json.dump(found, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
