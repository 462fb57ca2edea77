"""One rank of comm.py: sums a flat float32 buffer over all ranks by each way that one library offers, in turn.

horovodrun -np 2 python collectives.py hvtrain --sizes 1 100 --volume 200
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Callable, Sequence

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from reductions import operations  # noqa: E402
from stopwatch import RESULT  # noqa: E402

WARMUP = 2
"""Operations of each way and size before the clock counts: the first makes buffers and fills caches."""


@dataclass(frozen=True)
class Library:
    """A library that has been initialised. ``ways`` take (buffer, name) and return the tensor that holds the result.

    The result times ``factor`` is the sum over all ranks. ``buffer`` makes a vector of so many elements.
    """

    rank: int
    size: int
    factor: int
    barrier: Callable[[], None]
    buffer: Callable[[int], torch.Tensor]
    ways: dict[str, Callable[[torch.Tensor, str], torch.Tensor]]


def hvtrain(settings: Sequence[str]) -> Library:
    """The engine with hvtrain's ``settings``, as the training loop uses it."""
    import horovod.torch as hvd
    from contestants import HERE

    from hvtrain import config
    from hvtrain.comm.codecs import NAMES
    from hvtrain.engine import rounds
    from hvtrain.engine.horovod_torch import zeros
    from hvtrain.trainer import place_from_environment

    place = place_from_environment(config.load(HERE / "job.yaml", settings))
    world = rounds.form(place, "torch")
    seeds = itertools.count()

    def reduce(buffer: torch.Tensor, name: str, codec: str) -> torch.Tensor:
        world.noise(next(seeds))
        world.wait(world.sum_async(buffer, name, codec))
        return buffer

    ways = {codec: lambda buffer, name, codec=codec: reduce(buffer, name, codec) for codec in NAMES}
    return Library(place.rank, place.size, 1, hvd.barrier, zeros, ways)


def horovod(_: Sequence[str]) -> Library:
    """Plain Horovod, all defaults: it averages. ``fp16`` is what its optimizer does with ``Compression.fp16``."""
    import horovod.torch as hvd

    hvd.init()

    def fp16(buffer: torch.Tensor, name: str) -> torch.Tensor:
        small, context = hvd.Compression.fp16.compress(buffer)
        return hvd.Compression.fp16.decompress(hvd.allreduce_(small, name=name), context)

    ways = {"none": lambda buffer, name: hvd.allreduce_(buffer, name=name), "fp16": fp16}
    return Library(hvd.rank(), hvd.size(), hvd.size(), hvd.barrier, torch.empty, ways)


def gloo(_: Sequence[str]) -> Library:
    """torch.distributed over gloo."""
    import torch.distributed as dist

    dist.init_process_group("gloo")

    def reduce(buffer: torch.Tensor, name: str) -> torch.Tensor:
        dist.all_reduce(buffer)
        return buffer

    return Library(dist.get_rank(), dist.get_world_size(), 1, dist.barrier, torch.empty, {"none": reduce})


LIBRARIES = {"hvtrain": hvtrain, "horovod": horovod, "gloo": gloo}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--sizes", type=float, nargs="+", required=True, help="MB")
    parser.add_argument("--volume", type=float, required=True, help="MB that each way reduces of each size")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of hvtrain's job")
    args = parser.parse_args()
    library = LIBRARIES[args.library](args.set)
    torch.set_num_threads(1)
    for mb in args.sizes:
        measure(library, mb, operations(mb, args.volume))
    library.barrier()
    report(library, event="steady")


def measure(library: Library, mb: float, count: int) -> None:
    """Time ``count`` sums of ``mb`` MB in every way; check the last one of each.

    ::

        rank 0   copy |barrier|begin ---- sum ---- end     copy |barrier| ...     the next way
        rank 1   copy   |barr.|  begin -- sum -- end     copy   |barrier| ...

    ``time.monotonic`` is one clock for all processes of a machine, so the driver can tell when the last rank began.
    """
    elements = round(mb * 1e6 / 4)
    source, buffer = numbers(library.rank, elements), library.buffer(elements)
    exact = sum(numbers(rank, elements).double() for rank in range(library.size)) if library.rank == 0 else None
    stamps: dict[str, list[tuple[float, float]]] = {way: [] for way in library.ways}
    for number in range(WARMUP + count):
        for way, reduce in library.ways.items():
            buffer.copy_(source)
            library.barrier()
            begin = time.monotonic()
            result = reduce(buffer, f"{way}.{mb:g}")
            end = time.monotonic()
            if number >= WARMUP:
                stamps[way].append((begin, end))
            if number == WARMUP + count - 1:
                report(library, event="reduced", way=way, mb=mb, stamps=stamps[way],
                       digest=hashlib.blake2b(result.numpy(), digest_size=16).hexdigest(),
                       error=None if exact is None else largest_error(result, exact, library.factor))


def numbers(rank: int, elements: int) -> torch.Tensor:
    """What rank ``rank`` brings along."""
    return torch.randn(elements, generator=torch.Generator().manual_seed(1000 + rank))


def largest_error(result: torch.Tensor, exact: torch.Tensor, factor: int) -> float:
    """The largest error of any element, relative to the largest exact value."""
    parts = zip(result.split(1 << 20), exact.split(1 << 20))  # by parts: a second float64 copy would be large
    return max(float((part.double() * factor - true).abs().max()) for part, true in parts) / float(exact.abs().max())


def report(library: Library, **finding: object) -> None:
    line = json.dumps({"rank": library.rank, **finding}) + "\n"
    file = os.open(os.environ[RESULT], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, line.encode())
    os.close(file)


if __name__ == "__main__":
    main()
