"""All that a compiled engine depends on, as a value, and the key under which it is cached."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Mapping

from hvtrain.engine.edit import edit_names, edits_digest
from hvtrain.engine.edits import EDITS
from hvtrain.engine.frameworks import Framework, installed_frameworks
from hvtrain.engine.toolchain import SHIM
from hvtrain.errors import EngineBuildError

HOROVOD_VERSION = "0.28.1"
HOROVOD_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"

# Horovod's build reads these; its run-time variables (HOROVOD_RANK, HOROVOD_CYCLE_TIME, ...) are not among them.
_BUILD_PREFIXES = ("HOROVOD_WITH_", "HOROVOD_WITHOUT_", "HOROVOD_GPU", "HOROVOD_NCCL_", "HOROVOD_CUDA_",
                   "HOROVOD_ROCM_", "HOROVOD_BUILD_", "HOROVOD_NVTX_", "HOROVOD_CPU_OPERATIONS",
                   "HOROVOD_ALLOW_MIXED_GPU_IMPL", "HOROVOD_DEBUG")
_FEATURES = {"torch": "PYTORCH", "tensorflow": "TENSORFLOW"}


@dataclass(frozen=True)
class Recipe:
    """What is built: Horovod's and the frameworks' versions, the edits, the platform, and Horovod's variables."""

    frameworks: dict[str, str]
    cuda: dict[str, str]
    variables: dict[str, str]
    python: str
    platform: str
    edits: list[str] = field(default_factory=lambda: edit_names(EDITS))
    edits_digest: str = field(default_factory=lambda: source_digest())
    horovod: str = HOROVOD_VERSION

    @property
    def key(self) -> str:
        """The name under which the wheel is cached: equal keys mean interchangeable wheels."""
        text = json.dumps(asdict(self), sort_keys=True)
        names = "-".join(f"{name}{version}" for name, version in self.frameworks.items())
        return f"horovod{self.horovod}-{names}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def record(self) -> dict:
        """JSON-able form: the file ``hvtrain_engine.json`` inside the wheel and beside it in the cache."""
        return {"schema": 1, "key": self.key, **asdict(self)}


def source_digest() -> str:
    """A digest over the edits and the compiler shim: changes whenever the compiled engine would."""
    return hashlib.sha256((edits_digest(EDITS) + SHIM).encode()).hexdigest()


def current_recipe(env: Mapping[str, str] | None = None,
                   frameworks: tuple[Framework, ...] | None = None) -> Recipe:
    """The recipe for the frameworks that are installed here and the user's HOROVOD_* build variables.

    Raises EngineBuildError when no framework is left to build for.
    """
    env = os.environ if env is None else env
    chosen = [framework for framework in (installed_frameworks() if frameworks is None else frameworks)
              if env.get(f"HOROVOD_WITHOUT_{_FEATURES[framework.name]}") != "1"]
    if not chosen:
        raise EngineBuildError("There is no framework to build the engine for: neither PyTorch nor TensorFlow is "
                               "installed in this Python, or HOROVOD_WITHOUT_... excludes them.",
                               remedy="pip install torch")
    libc = "".join(platform.libc_ver())
    return Recipe(
        frameworks={framework.name: framework.version for framework in chosen},
        cuda={framework.name: framework.cuda for framework in chosen if framework.cuda},
        variables=build_variables(env, {framework.name for framework in chosen},
                                  cuda=any(framework.cuda for framework in chosen)),
        python=f"{sys.implementation.cache_tag}", platform=f"{sysconfig.get_platform()}-{libc}")


def build_variables(env: Mapping[str, str], names: set[str], *, cuda: bool) -> dict[str, str]:
    """Horovod's build variables: the user's own, and for what they leave open gloo, no MPI, no MXNet.

    With a CUDA build of a framework, NCCL is the default if its headers and the CUDA compiler are there.
    """
    chosen = {key: value for key, value in env.items() if key.startswith(_BUILD_PREFIXES) and value}
    for feature, default in (("GLOO", "WITH"), ("MPI", "WITHOUT"), ("MXNET", "WITHOUT")):
        _default(chosen, feature, default)
    for name, feature in _FEATURES.items():
        _default(chosen, feature, "WITH" if name in names else "WITHOUT")
    if cuda and not any(key.startswith("HOROVOD_GPU_") for key in chosen):
        nccl = nccl_home(env)
        if nccl is not None and nvcc(env):
            chosen["HOROVOD_GPU_OPERATIONS"] = "NCCL"
            chosen.setdefault("HOROVOD_NCCL_HOME", nccl)
    return dict(sorted(chosen.items()))


def _default(variables: dict[str, str], feature: str, choice: str) -> None:
    if not {f"HOROVOD_WITH_{feature}", f"HOROVOD_WITHOUT_{feature}"} & variables.keys():
        variables[f"HOROVOD_{choice}_{feature}"] = "1"


def nccl_home(env: Mapping[str, str]) -> str | None:
    """The directory with NCCL's ``include/nccl.h`` and ``libnccl.so``, None if there is none."""
    homes = [env.get("HOROVOD_NCCL_HOME"), env.get("NCCL_HOME"), env.get("CUDA_HOME"),
             "/usr/local/cuda", "/usr/local", "/usr"]
    for home in homes:
        if home and (Path(home) / "include" / "nccl.h").exists() and _has_library(home):
            return home
    return None


def _has_library(home: str) -> bool:
    return any(glob.glob(f"{home}/{place}/libnccl*.so") or glob.glob(f"{home}/{place}/libnccl_static.a")
               for place in ("lib", "lib64", "lib/*-linux-gnu"))


def nvcc(env: Mapping[str, str]) -> str | None:
    """The CUDA compiler, None if it is not found."""
    for home in (env.get("HOROVOD_CUDA_HOME"), env.get("CUDA_HOME"), "/usr/local/cuda"):
        found = home and shutil.which("nvcc", path=f"{home}/bin")
        if found:
            return found
    return shutil.which("nvcc")
