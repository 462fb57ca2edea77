"""What tells that tracing would get a module wrong."""

from __future__ import annotations

import random
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

TORCH, OWN = str(Path(torch.__file__).parent), str(Path(__file__).parent)


class Untraceable(Exception):
    """The module at ``path`` ("" for the model itself) cannot be traced; ``where``: a line of its source, or empty."""

    def __init__(self, path: str, reason: str, where: str = ""):
        self.path, self.reason, self.where = path, reason, where
        super().__init__(f"{path or 'the model'}: {reason}")


def modes() -> tuple[Any, ...]:
    """What contexts switch on and off, and what no graph records."""
    return (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
            *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
            *(torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda")),
            torch._C._autograd._top_saved_tensors_default_hooks(True))  # those of a checkpoint


def generators() -> tuple[Any, ...]:
    """The states of all generators of random numbers that decisions could be drawn from."""
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()


def check_generators(path: str, before: tuple[Any, ...]) -> None:
    """Raise Untraceable if the module at ``path`` has drawn random numbers since ``before``."""
    names = ("Python's random", "np.random", "torch")
    moved = [name for name, old, new in zip(names, before, generators()) if old != new]
    if moved:
        raise Untraceable(path, f"it draws from {moved[0]} while it decides what to compute")


PLAIN = (  # what torch.fx says (2.13), and what is meant
    ("'len' is not supported", "len() of a tensor is not known while the model is traced; write tensor.shape[0]"),
    ("inputs to control flow", "its control flow (if, while, and, or, not) depends on a tensor, for which there is torch.where, or "
     "on the size of one, which is not known while the model is traced"),
    ("cannot be iterated", "it goes over a tensor, or takes one apart (for, *, a, b = ...), whose length is not known "
     "while the model is traced"),
    ("cannot be interpreted as an integer", "a count (of range(), say) comes from a tensor or its shape, which is not "
     "known while the model is traced"))


def reason(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    for known, meant in PLAIN:
        if known in text:
            return meant
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"


def where(error: Exception) -> str:
    """The innermost line of source that is not PyTorch's."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)
              if not frame.filename.startswith((TORCH, OWN, "<"))]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
