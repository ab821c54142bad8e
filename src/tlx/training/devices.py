"""Where a run computes, and in which precision."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from tlx.errors import UserError
from tlx.specs import TrainerSpec

log = logging.getLogger(__name__)

FAST_BF16_FLAGS = {"amx_bf16", "avx512_bf16", "bf16"}  # Intel, Intel and AMD, Arm


def check_devices(spec: TrainerSpec) -> None:
    gpus = torch.cuda.device_count() + (1 if torch.backends.mps.is_available() else 0)
    if spec.accelerator == "gpu" and gpus == 0:
        raise UserError("trainer.accelerator=gpu: this machine has no GPU; use trainer=cpu.")
    if spec.sync_batchnorm and choose_device(spec.accelerator).type != "cuda":
        raise UserError("trainer.sync_batchnorm=true needs GPUs: PyTorch has it for CUDA only.")
    if spec.devices == "auto":
        return
    wanted = int(spec.devices)
    if wanted > gpus and choose_device(spec.accelerator).type != "cpu":
        raise UserError(f"trainer.devices={wanted}: this machine has {gpus} GPU.")
    if spec.accelerator == "auto" and gpus == 0 and wanted > 1:
        raise UserError(
            f"trainer.devices={wanted}: this machine has no GPU. For {wanted} processes on the "
            f"CPU: trainer=ddp trainer.devices={wanted}."
        )


def process_count(spec: TrainerSpec) -> int:
    """How many processes train together, over all nodes."""
    if "WORLD_SIZE" in os.environ:  # torchrun's
        return int(os.environ["WORLD_SIZE"])
    if spec.devices != "auto":
        return spec.num_nodes * int(spec.devices)
    on_gpus = choose_device(spec.accelerator).type == "cuda"
    return spec.num_nodes * (torch.cuda.device_count() if on_gpus else 1)


def choose_device(accelerator: str) -> torch.device:
    """`auto` and `gpu` are the first GPU where there is one."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator != "cpu" and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def choose_precision(spec: TrainerSpec) -> str:
    """Lightning's name of the precision; `auto` is bf16 only where the hardware is fast at it."""
    if spec.precision != "auto":
        return spec.precision
    device = choose_device(spec.accelerator)
    if device.type != "cpu":
        fast = device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
        reason = f"{'fast' if fast else 'no fast'} bf16 on this GPU"
    else:
        found = sorted(FAST_BF16_FLAGS & _cpu_flags())
        fast = bool(found)
        reason = f"the processor has {found[0]}" if fast else "the processor has no fast bf16"
    chosen = "bf16-mixed" if fast else "32"
    log.info("Precision %s: %s.", chosen, reason)
    return chosen


def _cpu_flags() -> set[str]:
    """Empty where the system does not tell (only Linux does)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return set(flags[0].split(":", 1)[1].split()) if flags else set()


def build_trainer(spec: TrainerSpec, precision: str, folder: Path, **settings: Any) -> Trainer:
    """A Trainer that writes nothing by itself: checkpoints and logs are callbacks' work."""
    on_cpu = choose_device(spec.accelerator).type == "cpu"
    return Trainer(
        accelerator="cpu" if on_cpu else "gpu",
        devices=1 if on_cpu and spec.devices == "auto" else spec.devices,
        num_nodes=spec.num_nodes,
        strategy="auto" if spec.strategy == "auto" else "ddp",
        precision=precision,  # type: ignore[arg-type]
        sync_batchnorm=spec.sync_batchnorm,
        accumulate_grad_batches=spec.accumulate,
        gradient_clip_val=spec.clip,
        limit_train_batches=spec.limit_train,
        limit_val_batches=spec.limit_eval,
        use_distributed_sampler=False,  # the data module shards by itself
        num_sanity_val_steps=0,
        enable_model_summary=False,
        logger=False,
        default_root_dir=folder,
        **settings,
    )
