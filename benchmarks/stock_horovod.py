"""Compiles Horovod as it was released, without hvtrain's edits, into an environment of its own, to compare with.

    python benchmarks/stock_horovod.py .stock
    python benchmarks/recovery.py --stock-horovod .stock/bin/python

The environment sees the packages of the Python that makes it, and has Horovod in their place. Edits that let peers
notice a closed connection at once speed Horovod's own elastic mode up too, from 30 s to under one: the engine is no
fair stand-in for what others have.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

from hvtrain.engine import build, recipe, source, toolchain
from hvtrain.engine.cache import EngineCache
from hvtrain.engine.machine import cores, memory_free


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 0 if sys.argv[1:] in (["-h"], ["--help"]) else 2
    home = Path(sys.argv[1]).absolute()
    toolchain.require_tools()
    cache = EngineCache()
    cache.prepare()
    archive = source.fetch_source(cache.sources)
    venv.create(home, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (packages / "base.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    with tempfile.TemporaryDirectory(prefix="stock-horovod-") as name:
        work = Path(name)
        command = [sys.executable, "-m", "pip", "wheel", str(source.unpack(archive, work)), "--no-build-isolation",
                   "--no-deps", "--no-cache-dir", "--verbose", "--wheel-dir", str(work)]
        jobs = build.compile_jobs(cores(), memory_free())
        print(f"Compiling for PyTorch, {jobs} compilers at once, some minutes. Log: {home / 'build.log'}", flush=True)
        with open(home / "build.log", "w") as log:
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=build.build_environment(
                _for_torch(), toolchain.write_shim(work), jobs)).returncode
        if code != 0:
            print(build.telling_lines((home / "build.log").read_text(errors="replace")), file=sys.stderr)
            return 1
        for wheel in work.glob("horovod-*.whl"):
            zipfile.ZipFile(wheel).extractall(packages)
    print(f"Ready: {home / 'bin' / 'python'}")
    return 0


def _for_torch() -> recipe.Recipe:
    return recipe.current_recipe({"HOROVOD_WITHOUT_TENSORFLOW": "1"})


if __name__ == "__main__":
    sys.exit(main())
