"""Nothing heavy is loaded before it is needed: the package, its command and every help page are instant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hvtrain.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
FRAMEWORKS = {"torch", "tensorflow", "keras", "horovod"}
CHECK = """
import sys
sys.argv[1:] = {arguments!r}
try:
    {code}
except SystemExit as end:
    assert not end.code, end.code
found = {heavy!r} & set(sys.modules)
assert not found, sorted(found)
"""


def runs_without(heavy, code, *arguments):
    done = subprocess.run([sys.executable, "-c", CHECK.format(arguments=list(arguments), code=code, heavy=set(heavy))],
                          capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package():
    runs_without(FRAMEWORKS | {"numpy", "pydantic", "aiohttp", "click"}, "import hvtrain; hvtrain.__version__; dir(hvtrain)")


def test_the_command():
    out = runs_without(FRAMEWORKS | {"numpy", "pydantic", "aiohttp"}, "from hvtrain.cli.main import main; main()", "--help")
    assert "Exit codes" in out and all(command in out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_sub_command(command):
    out = runs_without(FRAMEWORKS, "from hvtrain.cli.main import main; main()", command, "--help")
    assert out.startswith("Usage:")


def test_names_come_when_asked_for():
    runs_without(FRAMEWORKS, "from hvtrain import Task, Callback, Job, ArraySource")
    with pytest.raises(AttributeError, match="it has .*Trainer"):
        __import__("hvtrain").nonsense
