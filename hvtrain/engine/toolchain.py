"""What compiling the engine needs, checked in a second and before anything is downloaded.

Only the standard library is used: the set-up script runs ``python -m hvtrain.engine.toolchain`` before there is a
virtual environment. The exit code is 3 if something is missing.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from hvtrain.errors import EngineBuildError, ExitCode

CMAKE_MINIMUM = (3, 13)

# torch >= 2.1 needs C++17, Horovod asks for 14: the last -std counts. xla_mpi_ops.cc holds nothing for CPU builds
# but includes headers that newer TensorFlow wheels do not carry, unless the version claims to be an old one.
# In a CUDA build of TensorFlow, where the file has contents, they are left out: XLA-compiled collectives are not
# used by hvtrain.
SHIM = """\
#!/bin/sh
case "$*" in
  *xla_mpi_ops.cc*) exec {compiler} "$@" -std=c++17 -UTENSORFLOW_VERSION -DTENSORFLOW_VERSION=2005000000 ;;
esac
exec {compiler} "$@" -std=c++17
"""


@dataclass(frozen=True)
class Missing:
    """Something that compiling needs and that is not here. ``package`` is its Debian name."""

    what: str
    package: str

    def __str__(self) -> str:
        return f"{self.what}: install the package {self.package} (Debian, Ubuntu: apt-get install {self.package})."


def missing_tools() -> list[Missing]:
    """All that is missing for compiling the engine; empty if it can be compiled."""
    return [item for item in (_cmake(), _compiler(), _headers()) if item is not None]


def require_tools() -> None:
    """Raise EngineBuildError, naming everything that is missing and the packages, unless all is there."""
    missing = missing_tools()
    if missing:
        raise EngineBuildError(
            "The engine cannot be compiled here. " + " ".join(str(item) for item in missing),
            remedy=f"apt-get install {' '.join(item.package for item in missing)}")


def compiler_command() -> str:
    """The user's C++ compiler: ``$CXX``, else g++."""
    return os.environ.get("CXX", "").strip() or "g++"


def write_shim(directory: Path) -> Path:
    """Write the compiler wrapper for Horovod's sources into ``directory`` and return its path."""
    path = directory / "cxx"
    path.write_text(SHIM.format(compiler=compiler_command()), encoding="utf-8")
    path.chmod(0o755)
    return path


def _cmake() -> Missing | None:
    command = os.environ.get("HOROVOD_CMAKE") or "cmake"
    wanted = ".".join(map(str, CMAKE_MINIMUM))
    try:
        text = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return Missing(f"CMake >= {wanted} is needed and '{command}' does not run", "cmake")
    match = re.search(r"version\s+(\d+)\.(\d+)", text)
    if match is None or tuple(map(int, match.groups())) < CMAKE_MINIMUM:
        found = match.group(0) if match else "no version"
        return Missing(f"CMake >= {wanted} is needed, '{command}' says {found}", "cmake")
    return None


def _compiler() -> Missing | None:
    command = compiler_command()
    program = "#include <optional>\nint main() { std::optional<int> x{0}; if (auto y = x) return *y; }\n"
    try:
        done = subprocess.run([*shlex.split(command), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"],
                              input=program, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return Missing(f"A C++17 compiler is needed and '{command}' does not run", "g++")
    if done.returncode != 0:
        return Missing(f"A C++17 compiler is needed and '{command}' cannot compile C++17", "g++")
    if shutil.which("make") is None:
        return Missing("CMake needs 'make' and it is not there", "make")
    return None


def _headers() -> Missing | None:
    include = sysconfig.get_path("include")
    if include and os.path.exists(os.path.join(include, "Python.h")):
        return None
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    usual = os.path.realpath("/usr/bin/python3").endswith(f"python{version}")
    package = "python3-dev" if usual else f"python{version}-dev"
    return Missing(f"The headers of Python {version} are needed and {include}/Python.h is not there", package)


def main() -> int:
    missing = missing_tools()
    for item in missing:
        print(item, file=sys.stderr)
    return int(ExitCode.ENVIRONMENT) if missing else 0


if __name__ == "__main__":
    sys.exit(main())
