"""What a framework writes while it is imported is kept from the console, and never lost."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest

from hvtrain.control.noise import LONGEST, Noise


@contextmanager
def console():
    """A file in the place of standard error; the list that it gives has what was written to it in the end."""
    found = []
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            found.append(os.pread(file.fileno(), 1 << 20, 0).decode())


@pytest.fixture
def noise():
    with tempfile.TemporaryFile() as file:
        yield Noise(file.fileno())


def test_what_is_written_by_anybody_is_caught(noise):
    """By Python, by C (which knows the descriptor only), by child processes."""
    with console() as shown:
        with noise.caught():
            os.write(2, b"native ")
            subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('child')"], check=True)
        os.write(2, b"afterwards")
    assert shown == ["afterwards"] and noise.text() == b"native child"


def test_a_failure_shows_what_was_written_in_its_course_only(noise):
    with console() as shown:
        with noise.caught():
            os.write(2, b"of a good import")
        with pytest.raises(ImportError), noise.caught():
            os.write(2, b"libcudart.so.12 is missing")
            raise ImportError
    assert shown == ["libcudart.so.12 is missing"]


def test_of_much_the_end_is_kept(noise):
    with console() as shown, noise.caught():
        for _ in range(3):
            os.write(2, b"x" * LONGEST)
        os.write(2, b"the end")
    assert len(noise.text()) == LONGEST and noise.text().endswith(b"xthe end") and shown == [""]


def test_who_dies_of_the_import_has_written_it_to_the_file_of_its_starter():
    """A library that aborts the process says why before; nothing of this process is left to tell it."""
    code = ("import os, sys\nfrom hvtrain.control.noise import Noise\n"
            "with Noise(int(sys.argv[1])).caught():\n    os.write(2, b'Illegal instruction'); os.abort()")
    with tempfile.TemporaryFile() as file:
        done = subprocess.run([sys.executable, "-c", code, str(file.fileno())], pass_fds=[file.fileno()],
                              capture_output=True)
        assert done.returncode == -6 and done.stderr == b""
        assert Noise(file.fileno()).text() == b"Illegal instruction"
