"""What a host trains with, and in what that of two hosts must not differ."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Mapping

from hvtrain import __version__
from hvtrain.engine.frameworks import distribution_version, installed_frameworks
from hvtrain.engine.info import installed_record

NEEDED = {"torch": ("torch",), "keras": ("tensorflow", "keras"), "numpy": ("numpy",)}
"""The packages that a job of a framework computes with."""

DIGITS = 12
"""Of a digest: enough to tell two apart."""


def own() -> dict[str, str]:
    """What is installed here, by name; what is missing is left out. Imports none of the frameworks.

    ``source`` is a digest over hvtrain's modules, ``engine`` Horovod's version and a digest over the edits in it.
    """
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "hvtrain": __version__, "source": source()}
    found |= {framework.name: _public(framework.version) for framework in installed_frameworks()}
    found |= {name: _public(version) for name in ("keras", "numpy") if (version := distribution_version(name))}
    horovod = distribution_version("horovod")
    if horovod:
        digest = (installed_record() or {}).get("edits_digest")
        found["engine"] = f"{horovod} {str(digest)[:DIGITS] if digest else 'not built by hvtrain'}"
    return found


def source() -> str:
    """A digest over the text of hvtrain's modules: two of the same version may still be different ones."""
    root = Path(__file__).resolve().parents[1]
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        whole.update(f"{path.relative_to(root).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:DIGITS]


def differences(framework: str, theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """In what ``theirs`` cannot train a job of ``framework`` together with ``ours``, a phrase each."""
    names = ("python", "hvtrain", *NEEDED.get(framework, ()), "engine")
    found = [f"{name} {theirs.get(name, 'missing')} instead of {ours.get(name, 'none')}"
             for name in names if theirs.get(name) != ours.get(name)]
    if theirs.get("hvtrain") == ours.get("hvtrain") and theirs.get("source") != ours.get("source"):
        found.append(f"another source of hvtrain {ours.get('hvtrain')} ({theirs.get('source')} instead of "
                     f"{ours.get('source')})")
    return found


def _public(version: str) -> str:
    """Without what a build adds: 2.13.0+cpu and 2.13.0+cu130 compute together."""
    return version.partition("+")[0]
