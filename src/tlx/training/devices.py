"""Where a run computes, and in which precision."""

import ctypes
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from traceback import format_exception
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from tlx.errors import UserError
from tlx.files import write_json
from tlx.specs import TrainerSpec
from tlx.training.precision import bf16_on_cpu

PATIENCE = 600.0  # seconds that the other processes wait for what the first one measures
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h

log = logging.getLogger(__name__)


def check_devices(spec: TrainerSpec) -> None:
    gpus = torch.cuda.device_count() + (1 if torch.backends.mps.is_available() else 0)
    if spec.accelerator == "gpu" and gpus == 0:
        raise UserError("trainer.accelerator=gpu: this machine has no GPU; use trainer=cpu.")
    if spec.sync_batchnorm and choose_device(spec.accelerator).type != "cuda":
        raise UserError("trainer.sync_batchnorm=true needs GPUs: PyTorch has it for CUDA only.")
    if spec.compile:
        _check_compiler(choose_device(spec.accelerator).type)
    if spec.precision == "16-mixed" and choose_device(spec.accelerator).type == "cpu":
        raise UserError(
            "trainer.precision=16-mixed is for GPUs; on the processor use auto, bf16-mixed or 32."
        )
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


def _check_compiler(device: str) -> None:
    """On the processor torch.compile writes C++; Triton, on a GPU, writes C."""
    languages = {"cpu": ("C++", "CXX", "g++", "clang++"), "cuda": ("C", "CC", "gcc", "clang")}
    if device not in languages:
        return
    language, variable, *usual = languages[device]
    wanted = [os.environ[variable]] if variable in os.environ else usual
    if not any(shutil.which(name) for name in wanted):
        raise UserError(
            f"trainer.compile=true needs a {language} compiler, and {' or '.join(wanted)} is not "
            f"there; install {usual[0]}, or leave trainer.compile=false."
        )


def check_sweep(spec: TrainerSpec) -> None:
    """Processes that Lightning starts would each begin the whole sweep again."""
    if process_count(spec) > 1 and not is_launched():
        raise UserError(
            f"trainer.devices={spec.devices}: the trials of a sweep train in one process each; "
            "set trainer.devices=1."
        )


def is_launched() -> bool:
    """By torchrun, srun or Lightning; where there are several processes, with the others."""
    return bool({"LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys())


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


def keep_freed_memory() -> None:
    """Have glibc keep what tensors free for the next ones.

    Else large ones come from the system and go back to it each time, page by page, which takes a
    tenth or more of a forward pass on the processor.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # other C libraries have none
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def choose_precision(spec: TrainerSpec, folder: Path | None = None) -> str:
    """Lightning's name of the precision; `auto` is bf16 only where the hardware is fast at it.

    On a processor that is measured, by the run's first process. `folder`, the run's, keeps what
    came out, so that a resumed run and the other processes, which wait for it, compute as it did.
    """
    if spec.precision != "auto":
        return spec.precision
    kept = folder / "precision.json" if folder is not None else None
    is_first = getattr(rank_zero_only, "rank", 0) == 0
    if kept is not None and not is_first:
        until = time.monotonic() + PATIENCE
        while not kept.exists() and time.monotonic() < until:
            time.sleep(0.1)
    if kept is not None and kept.exists():
        found = json.loads(kept.read_text("utf-8"))
    else:
        fast, reason = _bf16_pays(choose_device(spec.accelerator))
        found = {"precision": "bf16-mixed" if fast else "32", "reason": reason}
        if kept is not None and is_first:
            write_json(kept, found)
    log.info("Precision %s: %s.", found["precision"], found["reason"])
    return str(found["precision"])


def _bf16_pays(device: torch.device) -> tuple[bool, str]:
    if device.type == "cpu":
        return bf16_on_cpu()
    fast = device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    return fast, f"{'fast' if fast else 'no fast'} bf16 on this GPU"


def start_processes(spec: TrainerSpec, folder: Path) -> None:
    """Start a run's other processes, if nobody has yet: Lightning would in the first fit only.

    So they share what comes before it, the features. Each runs the same command; should this
    process fail before the fit, they wait for it until PyTorch's time is over.
    """
    if process_count(spec) > 1:
        launcher = build_trainer(spec, "32", folder).strategy.launcher
        if launcher is not None:
            launcher.launch(lambda: None)


def leave_group() -> None:
    """After training: the others are not to wait for what the first process does alone."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def abandon(error: BaseException) -> None:
    """End this process now where it trains with others: they wait for it in a collective, and
    NCCL's own way out, which Lightning takes at the exit, would wait for them."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    said = isinstance(error, UserError)
    print(f"tlx: {error}" if said else "".join(format_exception(error)), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if said else 1)


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
