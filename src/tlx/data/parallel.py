"""The machine's cores, and work shared out among them."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, partial
from multiprocessing import get_context
from threading import Barrier
from typing import Any

import torch

from tlx.errors import UserError

FEW = 200  # pieces of work for which starting processes does not pay
MOST_THREADS = 8  # each may hold a whole photograph


def cores() -> int:
    """Those this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def shared_out(pieces: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map` over all cores, results in order.

    By processes: most of what a scan does to a small picture holds Python's lock (2 cores, pictures
    of 300 pixels: threads 400 a second, one process 560, two 1,000).
    """
    count = cores()
    if count == 1 or pieces < FEW:
        yield map
        return
    start = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(count, start, initializer=_leave_ctrl_c_to_the_parent)
    try:
        yield partial(pool.map, chunksize=16)
    except BrokenProcessPool:
        raise UserError(
            "a process that read images was killed, perhaps for want of memory; what was read is "
            "kept: start again."
        ) from None
    except BaseException:  # Ctrl-C: what they are at is not waited for
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def in_threads(work: Callable[..., Any], *arguments: Iterable[Any]) -> Iterable[Any]:
    """`map` over as many threads as PyTorch has, up to MOST_THREADS; results in order.

    Decoding and resizing give up Python's lock for part of their time, which the checks of a scan
    do not (2 cores, JPEGs of 500 × 375 pixels and PNGs of 300 × 300: 1.5 times as many a second as
    without). A loader's worker has one thread.
    """
    count = min(torch.get_num_threads(), MOST_THREADS)
    return map(work, *arguments) if count == 1 else _threads(count).map(work, *arguments)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Each with one thread of PyTorch's, which else would start so many in each of them."""
    own, everyone = torch.get_num_threads(), Barrier(count, timeout=60)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first question sets it to the process's number
        everyone.wait()

    pool = ThreadPoolExecutor(count, "tlx-decode", initializer=begin)
    wait([pool.submit(int) for _ in range(count)])
    torch.set_num_threads(own)  # that of threads to come as well, which `begin` has changed
    return pool


def _leave_ctrl_c_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
