"""What the processor can do at most, and how near VGG16's frozen blocks and block5 come to it.

    python benchmarks/limit.py

In each of several turns: the product of two 2048×2048 matrices, in float32 and, where the processor
has instructions for it, in bfloat16; the blocks before block5 on 20 images of 150 pixels, as the
feature cache runs them; a training step of block5 and a head on such features. The last two are in
the precision that `trainer.precision=auto` takes, and once more with `trainer.winograd=false`
(direct). Rates count the arithmetic of products and of direct convolutions alone, whichever way is
taken; shares are of the product in the same turn; medians over the turns.
"""

import copy
import json
import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from tlx.models.backbones import build_backbone
from tlx.models.processor import BF16_FLAGS, cpu_flags
from tlx.models.winograd import use_winograd
from tlx.training.devices import keep_freed_memory
from tlx.training.precision import bf16_on_cpu, fastest

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
    direct = build_backbone("vgg16").eval().to(memory_format=torch.channels_last).blocks
    blocks = copy.deepcopy(direct)
    use_winograd(blocks)
    images = torch.randn(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features = direct[:-1](images).contiguous(memory_format=torch.channels_last)
        before, after = operations(direct[:-1], images), operations(direct[-1], features)
        features = features.to(torch.bfloat16) if bf16 else features

    def prefix(frozen: nn.Module) -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            frozen(images)

    # backward: weights' gradients, and inputs' but for the first convolution
    counts = {"frozen_blocks": sum(before), "block5_step": 3 * sum(after) - after[0]}
    works = {
        "product_float32": (product(torch.float32), 2 * SIDE**3),
    }
    for way, network in {"": blocks, "_direct": direct}.items():
        works[f"frozen_blocks{way}"] = partial(prefix, network[:-1]), counts["frozen_blocks"]
        works[f"block5_step{way}"] = step(network[-1], features, bf16=bf16), counts["block5_step"]
    if BF16_FLAGS & cpu_flags():
        works["product_bf16"] = product(torch.bfloat16), 2 * SIDE**3
    turns = [{name: count / fastest(work) for name, (work, count) in works.items()}
             for _ in range(TURNS)]  # fmt: skip
    limit = "product_bf16" if bf16 else "product_float32"
    found = {"threads": torch.get_num_threads(), "precision": "bf16" if bf16 else "float32"}
    found |= {f"{name}_gflops": round(median(t[name] for t in turns) / 1e9, 1) for name in works}
    for name in counts:
        found[f"{name}_share"] = round(median(t[name] / t[limit] for t in turns), 2)
        gain = median(t[name] / t[f"{name}_direct"] for t in turns)
        found[f"{name}_times_as_fast_as_direct"] = round(gain, 2)
    json.dump(found | {"reason": reason}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
