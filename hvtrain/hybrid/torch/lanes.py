"""Where a stage computes: the processor, or a stream of its own on a GPU. To its stage both look alike.

What one stage hands to the next has a signal with it, which the receiver's lane waits for: None from the processor, where a
value is ready when it is there; an event of the stream from a GPU. (The GPU's lane has been run on no GPU yet.)
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any, ContextManager, Iterator

import torch


class Lane:
    """The processor. ``device`` is where the stage's parameters lie."""

    def __init__(self, device: torch.device):
        self.device = device

    def entered(self) -> ContextManager[Any]:
        """Within this context the calling thread computes in this lane; at its end all of it is done."""
        return nullcontext()

    def signal(self) -> Any:
        """Something that is given when all is done that was asked for so far."""
        return None

    def take(self, tensor: torch.Tensor, signal: Any) -> torch.Tensor:
        """``tensor`` of another lane, on this one's device, once ``signal`` is given."""
        if signal is not None:  # it comes from a GPU; this thread's copy would not wait for that lane's stream
            signal.synchronize()
        return tensor.to(self.device)

    def noise(self, seed: int) -> None:
        """Seed what draws random numbers on this device without asking for a generator."""


class StreamLane(Lane):
    """A stream of a GPU."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self._stream = torch.cuda.Stream(device)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.cuda.device(self.device))
            self._stream.wait_stream(torch.cuda.default_stream(self.device))  # the last update of the weights
            stack.enter_context(torch.cuda.stream(self._stream))
            try:
                yield
            except BaseException:
                # What it still computes must not write into statistics that are put back, or gradients of the next try.
                with suppress(RuntimeError):  # the first error counts
                    self._stream.synchronize()
                raise
            self._stream.synchronize()

    def signal(self) -> Any:
        return self._stream.record_event()

    def take(self, tensor: torch.Tensor, signal: Any) -> torch.Tensor:
        if signal is not None:
            self._stream.wait_event(signal)
        if tensor.device.type == "cuda":
            tensor.record_stream(self._stream)  # its memory must not be given away before this stream is done with it
        return tensor.to(self.device, non_blocking=True)

    def noise(self, seed: int) -> None:
        torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)


def lane(device: torch.device) -> Lane:
    """The lane for a stage on ``device``."""
    return StreamLane(device) if device.type == "cuda" else Lane(device)
