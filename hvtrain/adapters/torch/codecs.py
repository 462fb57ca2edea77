"""Which way gradients take: hvtrain's exchange over gloo, or NCCL in half precision."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Iterable, Mapping

import torch

from hvtrain.checkpoint.blob import Blob
from hvtrain.comm.codecs import Codec, EngineCodec
from hvtrain.engine.world import World
from hvtrain.errors import UsageError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Cast:
    half: torch.Tensor
    flat: torch.Tensor
    handle: Any


class CastCodec:
    """Sums in half precision: for NCCL, whose half-precision sums are fast. Too large sums become infinite."""

    name, lossy = "fp16", True

    def __init__(self) -> None:
        self._halves: dict[str, torch.Tensor] = {}

    def start(self, world: World, flat: torch.Tensor, name: str) -> _Cast:
        half = self._halves.get(name)
        if half is None:
            half = self._halves[name] = torch.empty_like(flat, dtype=torch.float16)
        half.copy_(flat)
        return _Cast(half, flat, world.sum_async(half, name))

    def finish(self, world: World, handle: _Cast) -> None:
        world.wait(handle.handle)
        handle.flat.copy_(handle.half)

    def commit(self) -> None:
        pass

    def export(self) -> dict[str, Blob]:
        return {}

    def restore(self, blobs: Mapping[str, Blob]) -> None:
        pass


def choose(name: str, parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> Codec:
    """The way for ``comm.codec: name`` and the trainable ``parameters`` (with their names).

    Raises:
        UsageError: that codec cannot carry gradients of that type, or not on that device.
    """
    cuda = False
    for label, parameter in parameters:
        cuda = cuda or parameter.device.type == "cuda"
        if name != "none" and parameter.dtype != torch.float32:
            raise UsageError(f"comm.codec: {name} compresses float32 gradients, but the parameter {label!r} is "
                             f"{_short(parameter.dtype)}. Keep the model in float32 (with train.precision: bf16 or fp16 "
                             "it computes in half precision all the same), or set comm.codec=none")
        if parameter.dtype == torch.bfloat16:
            raise UsageError(f"the parameter {label!r} is bfloat16, whose gradients Horovod cannot add up. Keep the "
                             "model in float32 and set train.precision=bf16")
    if not cuda or name == "none":
        if name != "none":
            log.info("gradients travel between hosts as %s and are added up in float32", name)
        return EngineCodec(name)
    if name != "fp16":
        raise UsageError(f"comm.codec: {name} works with gradients on the CPU (gloo) only, these are on a GPU. "
                         "There: comm.codec=fp16 or none")
    log.info("gradients travel as fp16 and are added up by NCCL in half precision")
    return CastCodec()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
