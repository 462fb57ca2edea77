"""A world of threads, for tests of what runs on every rank: no process, no Horovod, the same bits on all ranks."""

from __future__ import annotations

import threading
from typing import Any, Callable

import torch

from hvtrain.errors import RoundBroken
from tests.support import wire

SECONDS = 20.0
"""How long a rank waits for the others: far longer than they take."""


class ThreadWorld:
    """Rank ``rank`` of ``size`` threads. Fulfils :class:`hvtrain.engine.world.World`.

    Sums are those of the engine between hosts of one rank each (:func:`tests.support.wire.total`).
    ``sums`` are the (name, codec) of all that were asked for, ``seeds`` those of the noise. From ``breaks_at`` sums on
    (counted from 1, on all ranks alike), they raise RoundBroken.
    """

    local_rank, timeout, waiting = 0, SECONDS, False

    def __init__(self, rank: int, size: int, shared: dict[str, Any]):
        self.rank, self.size, self._shared = rank, size, shared
        self.sums: list[tuple[str, str]] = []
        self.seeds: list[int] = []
        self.breaks_at: int | None = None

    def sum_async(self, tensor: torch.Tensor, name: str, codec: str = "none") -> tuple[str, str]:
        if self.breaks_at is not None and len(self.sums) + 1 >= self.breaks_at:
            raise RoundBroken("this test wants it so")
        self.sums.append((name, codec))
        self._shared.setdefault(name, {})[self.rank] = torch.as_tensor(tensor)
        return name, codec

    def wait(self, handle: tuple[str, str]) -> None:
        name, codec = handle
        self._together(lambda: self._sum(self._shared[name], codec, name))

    def broadcast(self, tensor: torch.Tensor, root: int, name: str) -> None:
        self._shared.setdefault(name, {})[self.rank] = torch.as_tensor(tensor)
        self._together(lambda: [other.copy_(self._shared[name][root]) for other in self._shared[name].values()])

    def noise(self, seed: int) -> None:
        self.seeds.append(seed)

    def reduced(self) -> float:
        return 0.0

    def cut(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def _sum(self, tensors: dict[int, torch.Tensor], codec: str, name: str) -> None:
        ordered = [tensors[rank] for rank in range(self.size)]
        if codec == "none":  # of any type
            total = ordered[0].clone()
            for tensor in ordered[1:]:
                total += tensor
        else:
            seed = self.seeds[-1] & (2**64 - 1) if self.seeds else 0
            hosts = [[rank] for rank in range(self.size)]
            total = torch.from_numpy(wire.total([tensor.numpy() for tensor in ordered], codec, seed, name, hosts))
        for tensor in ordered:
            tensor.copy_(total)

    def _together(self, work: Callable[[], Any]) -> None:
        """Have rank 0 do ``work`` while the others wait."""
        barrier = self._shared["barrier"]
        barrier.wait(SECONDS)
        if self.rank == 0:
            with torch.no_grad():
                work()
        barrier.wait(SECONDS)


def together(work: Callable[[ThreadWorld], Any], size: int = 2) -> list[Any]:
    """``work(world)`` on so many ranks at once; their results in rank order. Raises what the first of them raised."""
    shared: dict[str, Any] = {"barrier": threading.Barrier(size)}
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def main(rank: int) -> None:
        try:
            results[rank] = work(ThreadWorld(rank, size, shared))
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)
            shared["barrier"].abort()

    threads = [threading.Thread(target=main, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * SECONDS)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "the ranks wait for each other"
    return results
