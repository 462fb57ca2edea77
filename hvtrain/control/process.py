"""What hvtrain's processes have in common: dying with their parent, being told apart in ``ps``."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_M_ARENA_MAX = -8  # malloc.h


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends; it ends at once if that has ended already.

    The parent must be ``parent`` (a pid): without that check a parent that died before the call would go
    unnoticed. Linux only; elsewhere the closed pipe to the parent has to do.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def set_name(name: str) -> None:
    """Name this process for ``ps`` and ``top`` (at most 15 bytes are kept)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def one_heap() -> None:
    """Have threads that start from now on allocate from the main thread's heap, unless the environment says otherwise.

    In a thread's own heap glibc holds nothing of 64 MiB and more. It maps such a piece anew each time, whatever
    ``KEEP_MEMORY`` says (control/warmstart.py), and the page faults of one gradient of that size took as long as computing
    it (a stage with a 4096 x 4096 layer, micro-batches of 16). Nothing happens with another C library.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def thread_count() -> int:
    """Threads of this process, as the kernel counts them (native ones included)."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        import threading

        return threading.active_count()
