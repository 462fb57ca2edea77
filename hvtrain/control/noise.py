"""What frameworks write to standard error while they are imported: kept off the console, there for those who look.

::

    starter --file--> warm process: import (fd 2 -> file) --fork--> worker: its log begins with it
       |                    +-- the import raises: all of it goes to the console after all
       +-- the warm process dies of the import: the starter has the file, and shows its end

TensorFlow tells of processor instructions, of missing GPUs and of its own logging in each process that imports it.
Descriptor 2 itself is led elsewhere, because most of that is written by C++.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import Iterator

LONGEST = 64 << 10
"""Of what was written, so many last bytes are shown."""


class Noise:
    """The file ``fd``, which whoever opened it keeps open."""

    def __init__(self, fd: int):
        self._fd = fd

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Within this context standard error is written to the file, and shown only if it ends by an exception."""
        sys.stderr.flush()
        begin, console, failed = os.lseek(self._fd, 0, os.SEEK_END), os.dup(2), True
        os.dup2(self._fd, 2)
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(console, 2)
            os.close(console)
            if failed:
                show(self.text(begin))

    def text(self, begin: int = 0) -> bytes:
        """What was caught, from the byte ``begin`` on, but of that no more than the last :data:`LONGEST` bytes."""
        return os.pread(self._fd, LONGEST, max(begin, os.fstat(self._fd).st_size - LONGEST))


def show(text: bytes) -> None:
    """Write ``text`` to standard error as it is now."""
    sys.stderr.flush()
    while text:
        text = text[os.write(2, text):]
