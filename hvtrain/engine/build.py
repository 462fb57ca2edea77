"""Compiles the engine: Horovod's release plus our edits, for the frameworks that are installed, as a cached wheel."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from hvtrain.engine.cache import RECORD_NAME, EngineCache
from hvtrain.engine.edit import apply_edits
from hvtrain.engine.edits import EDITS
from hvtrain.engine.machine import cores, memory_free
from hvtrain.engine.recipe import Recipe, current_recipe
from hvtrain.engine.source import fetch_source, unpack
from hvtrain.engine.toolchain import require_tools, write_shim
from hvtrain.errors import EngineBuildError

log = logging.getLogger(__name__)

# One compiler process on a file that includes a framework's headers takes up to this much memory.
_BYTES_PER_JOB = 2 << 30
_LIBRARIES = {"torch": "horovod/torch/mpi_lib_v2", "tensorflow": "horovod/tensorflow/mpi_lib"}
# Gets one line of text at a time, for a person.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """A finished engine. ``fresh`` is False when it came out of the cache."""

    wheel: Path
    recipe: Recipe
    fresh: bool


def build_engine(*, force: bool = False, cache: EngineCache | None = None, say: Say = log.info) -> Built:
    """The wheel for this environment, from the cache unless ``force``; compiled if it is not there.

    ``say`` is told, in whole sentences, what happens and how far the compiler is. Raises EngineBuildError, before
    anything slow, when a tool is missing; and with the log's path and its telling lines when compiling fails.
    """
    recipe, cache = current_recipe(), cache or EngineCache()
    wheel = cache.wheel(recipe.key)
    if wheel is not None and not force:
        return Built(wheel, recipe, fresh=False)
    require_tools()
    _require_python_packages()
    cache.prepare()
    with cache.locked(recipe.key, lambda: say("Another process builds this engine; waiting for it.")):
        wheel = cache.wheel(recipe.key)
        if wheel is not None and not force:
            return Built(wheel, recipe, fresh=False)
        source = fetch_source(cache.sources)
        with cache.workspace(recipe.key) as work:
            finished = _compile(recipe, source, work, cache.log(recipe.key), say)
            return Built(cache.publish(recipe.key, finished), recipe, fresh=True)


def install_engine(wheel: Path) -> None:
    """Install the wheel into this Python, in place of any Horovod that is there. Raises EngineBuildError."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-deps", "--force-reinstall", "--no-index", str(wheel)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-8:])
        raise EngineBuildError(f"pip could not install {wheel}:\n{tail}")


def compile_jobs(core_count: int, free_bytes: int) -> int:
    """How many compilers may run at once: as many as there are cores, fewer if memory is short."""
    return max(1, min(core_count, free_bytes // _BYTES_PER_JOB))


def build_environment(recipe: Recipe, shim: Path, jobs: int) -> dict[str, str]:
    """The environment of the compiling process: the user's, with the recipe's variables and our compiler."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HOROVOD_WITH")}
    env.update(recipe.variables)
    env["CXX"] = str(shim)
    # Below `make`, the variables of the outer make are in the environment; and without MAKEFLAGS, or with an
    # empty one, Horovod's setup.py takes 8 jobs whatever the machine has.
    for name in ("MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"):
        env.pop(name, None)
    env["MAKEFLAGS"] = f"-j{jobs}"
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env


def telling_lines(output: str) -> str:
    """The part of a failed build's output that says why: the first errors, else the last lines."""
    lines = output.splitlines()
    errors = [line for line in lines if re.search(r"\b(fatal )?error:|CMake Error|Killed|No space left", line)]
    return "\n".join(f"  {line.strip()[:300]}" for line in (errors[:6] or lines[-12:]))


def _compile(recipe: Recipe, source: Path, work: Path, log_path: Path, say: Say) -> Path:
    """Build in ``work``; returns the directory with the wheel and its record."""
    tree = unpack(source, work)
    apply_edits(tree, EDITS)
    record = json.dumps(recipe.record(), indent=2, sort_keys=True) + "\n"
    (tree / "horovod" / "hvtrain_engine.json").write_text(record, encoding="utf-8")
    finished = work / "finished"
    finished.mkdir()
    jobs = compile_jobs(cores(), memory_free())
    names = " and ".join(f"{name} {version}" for name, version in recipe.frameworks.items())
    say(f"Compiling Horovod {recipe.horovod} for {names} with {jobs} compiler processes, "
        f"about {_minutes(recipe, jobs)} minutes. Log: {log_path}")
    if recipe.cuda:
        say(_gpu_choice(recipe))
    # Without --no-cache-dir, pip keeps the wheel of this path and hands it out again for other edits.
    command = [sys.executable, "-m", "pip", "wheel", str(tree), "--verbose", "--no-build-isolation", "--no-deps",
               "--no-cache-dir", "--wheel-dir", str(finished)]
    code = _run(command, build_environment(recipe, write_shim(work), jobs), log_path, say)
    wheels = list(finished.glob("horovod-*.whl"))
    if code != 0 or not wheels:
        output = log_path.read_text(encoding="utf-8", errors="replace")
        raise EngineBuildError(f"Compiling the engine failed (pip ended with {code}). From {log_path}:\n"
                               f"{telling_lines(output)}")
    _check_libraries(wheels[0], recipe, log_path)
    (finished / RECORD_NAME).write_text(record, encoding="utf-8")
    return finished


def _run(command: list[str], env: dict[str, str], log_path: Path, say: Say) -> int:
    """Run the build with its output in ``log_path``, saying each further tenth of progress; the exit code."""
    said = 0
    with open(log_path, "w", encoding="utf-8") as out, subprocess.Popen(
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as child:
        try:
            for line in child.stdout:
                out.write(line)
                match = re.search(r"\[\s*(\d+)%\]", line)
                if match and int(match.group(1)) >= said + 10:
                    said = int(match.group(1)) // 10 * 10
                    out.flush()
                    say(f"  {said}%")
        except BaseException:  # Ctrl-C: the compilers have got it too; do not leave pip behind
            child.terminate()
            raise
    return child.returncode


def _check_libraries(wheel: Path, recipe: Recipe, log_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for framework in recipe.frameworks:
        if not any(name.startswith(_LIBRARIES[framework]) and name.endswith(".so") for name in names):
            raise EngineBuildError(f"The wheel has no library for {framework}. See {log_path}.")


def _require_python_packages() -> None:
    missing = [name for name in ("setuptools", "wheel", "packaging", "cffi", "pip")
               if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineBuildError(f"Building the engine needs the Python packages {', '.join(missing)}.",
                               remedy="pip install 'setuptools<81' wheel packaging cffi")


def _minutes(recipe: Recipe, jobs: int) -> int:
    """A rough guess from measurements: 6 processor minutes for PyTorch, 12 for TensorFlow."""
    work = {"torch": 6, "tensorflow": 12}
    return max(1, round(sum(work[name] for name in recipe.frameworks) / jobs))


def _gpu_choice(recipe: Recipe) -> str:
    operations = recipe.variables.get("HOROVOD_GPU_OPERATIONS")
    if operations:
        home = recipe.variables.get("HOROVOD_NCCL_HOME", "the default places")
        return f"GPU collectives: {operations} (NCCL from {home})."
    if any(key.startswith("HOROVOD_GPU_") for key in recipe.variables):
        return "GPU collectives as the HOROVOD_GPU_* variables say."
    return ("GPU collectives are left out: NCCL's headers (nccl.h, libnccl.so) or nvcc were not found. Install "
            "libnccl-dev and the CUDA toolkit, or set HOROVOD_NCCL_HOME, for GPU training.")
