"""Which frameworks are installed, read from their files: nothing is imported, so asking costs milliseconds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

# One importable package, and the distributions that bring it.
_DISTRIBUTIONS = {
    "torch": ("torch",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu"),
}
NAMES = tuple(_DISTRIBUTIONS)


@dataclass(frozen=True)
class Framework:
    """An installed framework. ``cuda`` is the version it was built for, ``"yes"`` if unknown, "" for none."""

    name: str
    version: str
    cuda: str = ""


def installed_frameworks() -> tuple[Framework, ...]:
    """The frameworks that this Python could import, in a fixed order."""
    found = []
    for name in NAMES:
        version = distribution_version(*_DISTRIBUTIONS[name])
        root = _package_root(name)
        if version and root:
            found.append(Framework(name, version, _cuda(name, root)))
    return tuple(found)


def distribution_version(*names: str) -> str:
    """The version of the first of these distributions that is installed, "" if none is."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _package_root(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a broken or half removed package
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _cuda(name: str, root: Path) -> str:
    if name == "torch":
        return torch_cuda(_read(root / "version.py"))
    return tensorflow_cuda(_read(root / "python" / "platform" / "build_info.py"))


def torch_cuda(version_file: str) -> str:
    """The CUDA version that PyTorch's ``version.py`` names, "" for a build without CUDA."""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)['\"]", version_file, re.MULTILINE)
    return match.group(1) if match else ""


def tensorflow_cuda(build_info: str) -> str:
    """The CUDA version that TensorFlow's ``build_info.py`` names, "" for a build without CUDA."""
    if not re.search(r"'is_cuda_build',\s*True", build_info):
        return ""
    match = re.search(r"'cuda_version',\s*'([^']+)'", build_info)
    return match.group(1) if match else "yes"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
