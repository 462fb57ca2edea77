"""The section that says how a model is cut into stages: ``hybrid``."""

from __future__ import annotations

from typing import Annotated, Any, List, Literal, Union

from pydantic import Field, WrapValidator
from pydantic_core import PydanticCustomError

from hvtrain.config.base import PositiveInt, Section, Text, Threads
from hvtrain.config.units import Size


def _a_word_or_names(value: Any, handler: Any) -> Any:
    # In one sentence: pydantic would list what is wrong for each of the alternatives.
    if value in ("auto", "cpu") or (isinstance(value, list) and value and all(
            isinstance(name, str) and name for name in value)):
        return value
    raise PydanticCustomError("unit", "{text}", {
        "text": f"expected auto, cpu, or the device of each stage, such as [cuda:0, cuda:1]; got {value!r}"})


Devices = Annotated[
    Union[Literal["auto", "cpu"], Annotated[List[Text], Field(min_length=1)]], WrapValidator(_a_word_or_names)]


class HybridConfig(Section):
    """Layers partitioned over the devices of a worker, and micro-batches that flow through them.

    With this section each worker is a *replica* that owns ``stages`` devices; gradients are reduced over the replicas.
    """

    stages: Threads = Field("auto", description=(
        "Parts that the model's layers are cut into, each on a device of its own. auto: as `hvtrain plan` recommends for "
        "this machine."))
    microbatches: Threads = Field("auto", description=(
        "Parts that a worker's share of the global batch is cut into, as even as possible; more of them keep the stages "
        "busier. While workers are missing, the others have more, not larger ones. "
        "auto: as `hvtrain plan` recommends; 4 for each stage where that has nothing to choose."))
    schedule: Literal["1f1b", "gpipe"] = Field("1f1b", description=(
        "Order of the passes. gpipe: all forward, then all backward; 1f1b: backward as early as possible, so that fewer "
        "activations are kept, in the same time."))
    devices: Devices = Field("auto", description=(
        "The device of each stage, for instance [cuda:0, cuda:1]; cpu: a thread of the processor for each. auto: the GPUs "
        "that the worker has, or cpu."))
    recompute: bool = Field(False, description=(
        "Keep only what enters a stage, and compute its forward pass again for backward: less memory, a third more "
        "computation."))
    memory: Union[Size, None] = Field(None, description=(
        'Memory of each device, for instance "80GB", which no stage may exceed. Left out: what the GPUs have; no limit on '
        "the processor."))
    split: Union[Annotated[List[PositiveInt], Field(min_length=1)], None] = Field(None, description=(
        "Number of layers in each stage, for instance [3, 5]. Left out: the split with the shortest longest stage, by a "
        "measurement of the model."))

    @property
    def on_processor(self) -> bool:
        """Whether all stages are to be on the processor, whatever GPUs there are."""
        named = isinstance(self.devices, list) and all(name.lower().startswith("cpu") for name in self.devices)
        return self.devices == "cpu" or named
