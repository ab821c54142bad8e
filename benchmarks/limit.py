"""What the processor can do at most, and how near VGG16's frozen blocks and block5 come to it.

    python benchmarks/limit.py

In each of several turns: the product of two 2048×2048 matrices, in float32 and, where the processor
has instructions for it, in bfloat16; the blocks before block5 on 20 images of 150 pixels, as the
feature cache runs them; a training step of block5 and a head on such features. The last two are in
the precision that `trainer.precision=auto` takes. Rates count the arithmetic of products and
convolutions alone, shares are of the product in the same turn; medians over the turns.
"""

import json
import sys
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from tlx.models.backbones import build_backbone
from tlx.training.devices import keep_freed_memory
from tlx.training.precision import FLAGS, bf16_on_cpu, cpu_flags, fastest

SIZE, BATCH, SIDE, TURNS = 150, 20, 2048, 7


def product(dtype: torch.dtype) -> Callable[[], object]:
    a, b = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    return lambda: a @ b


def operations(network: nn.Module, images: Tensor) -> list[int]:
    """Of each convolution in one forward pass."""
    counts: list[int] = []

    def count(module: nn.Conv2d, inputs: object, output: Tensor) -> None:
        counts.append(2 * output.numel() * module.weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d)]
    network(images)
    for hook in hooks:
        hook.remove()
    return counts


def step(block: nn.Module, features: Tensor, *, bf16: bool) -> Callable[[], object]:
    network = nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2))
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    labels = torch.arange(BATCH) % 2

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(network(features), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return work


def main() -> None:
    keep_freed_memory()
    bf16, reason = bf16_on_cpu()
    backbone = build_backbone("vgg16").eval().to(memory_format=torch.channels_last)
    frozen, block = backbone.blocks[:-1], backbone.blocks[-1]
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = frozen(images).contiguous(memory_format=torch.channels_last)
        features = features.to(torch.bfloat16) if bf16 else features
        before, after = operations(frozen, images), operations(block, features)

    def prefix() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            frozen(images)

    works = {
        "product_float32": (product(torch.float32), 2 * SIDE**3),
        "frozen_blocks": (prefix, sum(before)),
        # backward: weights' gradients, and inputs' but for the first convolution
        "block5_step": (step(block, features, bf16=bf16), 3 * sum(after) - after[0]),
    }
    if FLAGS & cpu_flags():
        works["product_bf16"] = product(torch.bfloat16), 2 * SIDE**3
    turns = [{name: count / fastest(work) for name, (work, count) in works.items()}
             for _ in range(TURNS)]  # fmt: skip
    limit = "product_bf16" if bf16 else "product_float32"
    found = {"threads": torch.get_num_threads(), "precision": "bf16" if bf16 else "float32"}
    found |= {f"{name}_gflops": round(median(t[name] for t in turns) / 1e9, 1) for name in works}
    for name in ("frozen_blocks", "block5_step"):
        found[f"{name}_share"] = round(median(t[name] / t[limit] for t in turns), 3)
    json.dump(found | {"reason": reason}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
