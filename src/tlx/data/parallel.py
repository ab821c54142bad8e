"""The machine's cores, and work shared out among them."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from typing import Any

import torch

FEW = 200  # pieces of work for which starting processes does not pay


def cores() -> int:
    """Those this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def shared_out(pieces: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map` over all cores, results in order.

    By processes: most of what is done to a small picture holds Python's lock (2 cores, pictures of
    300 pixels: threads 400 a second, one process 560, two 1,000).
    """
    count = cores()
    if count == 1 or pieces < FEW:
        yield map
        return
    start = get_context("fork" if sys.platform == "linux" else "spawn")
    with start.Pool(count, initializer=_leave_ctrl_c_to_the_parent) as pool:
        yield partial(pool.imap, chunksize=16)


def in_threads(work: Callable[..., Any], *arguments: Iterable[Any]) -> Iterable[Any]:
    """`map` over as many threads as PyTorch has, so in a loader's worker none; results in order.

    Decoding gives up Python's lock for part of its time (2 cores, JPEGs of 500 × 375 pixels and
    PNGs of 300 × 300: 1.5 times as many a second as without).
    """
    count = torch.get_num_threads()
    return map(work, *arguments) if count == 1 else _threads(count).map(work, *arguments)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="tlx-decode")


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
