"""Memory that a stage's thread has freed is there for its next micro-batch."""

from __future__ import annotations

import os
import subprocess
import sys

from hvtrain.control.warmstart import KEEP_MEMORY

CODE = """
import resource, sys, threading
from hvtrain.control import process

def micro_batches():
    for number in range(6):
        b"x" * 80_000_000  # freed at once
        if number == 0:
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

faults = []
if "one" in sys.argv:
    process.one_heap()
thread = threading.Thread(target=micro_batches)
thread.start()
thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults[0])
"""


def page_faults(*arguments: str, **environment: str) -> int:
    values = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", CODE, *arguments], env={**values, **KEEP_MEMORY, **environment}, check=True,
                          capture_output=True, text=True)
    return int(done.stdout)


def test_large_gradients_of_a_thread_are_not_mapped_anew():
    """A stage with a layer of 64 MB took twice as long as it had to: each micro-batch's gradient was new memory, page by page,
    because glibc keeps nothing of that size in a thread's own heap."""
    pages = 80_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert page_faults("one") < pages < page_faults()
    assert page_faults("one", MALLOC_ARENA_MAX="4") > pages  # what the user says goes first
