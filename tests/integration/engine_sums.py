"""Rounds over several hosts, all of them this machine, and what the engine's sums must be in them."""

from __future__ import annotations

import numpy as np

from engine_members import Member, begin, formed, place
from engine_store import Store
from tests.support import wire
from tests.support.parts import part

CODECS = ("none", "fp16", "bf16", "int8")
LOSSY = CODECS[1:]
Hosts = list[list[int]]
"""The ranks on each host."""


def apart(size: int) -> Hosts:
    """A host for each."""
    return [[rank] for rank in range(size)]


def form_hosts(members: list[Member], store: Store, hosts: Hosts, **more: object) -> None:
    """Form a round in which ``hosts`` are told apart by their names, and make sure that it adds up."""
    numbers = []
    for rank, member in enumerate(members):
        number, local = next((n, host.index(rank)) for n, host in enumerate(hosts) if rank in host)
        peers = [n for n, host in enumerate(hosts) if len(host) > local]
        numbers.append(begin(member, **place(
            store.port, rank, len(members), local_rank=local, local_size=len(hosts[number]),
            cross_rank=peers.index(number), cross_size=len(peers), host=f"host{number}", **more)))
    formed(members, numbers)


def on_all(members: list[Member], do: str, **arguments: object) -> list:
    """The same command for all; their values."""
    numbers = [member.send(do, **arguments) for member in members]
    answers = [member.answer(number, 60.0) for member, number in zip(members, numbers)]
    assert all("value" in answer for answer in answers), answers
    return [answer["value"] for answer in answers]


def sums(members: list[Member], codec: str, counts: list[int], seed: int, **more: object) -> list[str]:
    """The hashes of these sums. Fails unless all ranks have the same, every time."""
    found = on_all(members, "sums", codec=codec, counts=counts, seed=seed, **more)
    first = found[0][0]
    for rank, repetitions in enumerate(found):
        for time, other in enumerate(repetitions):
            wrong = [count for count, mine, theirs in zip(counts, first, other) if mine != theirs]
            assert not wrong, f"{codec}: rank {rank} has other bits in sums of {wrong}, the {time + 1}. time"
    return first


def parts(kind: str, count: int, seed: int, size: int) -> list[np.ndarray]:
    return [part(kind, count, seed, rank) for rank in range(size)]


SMALL = 1 << 17
"""Below so many numbers, what is not compressed goes straight from rank to rank (kSmall in hvtrain_neighbours.h)."""


def expected(codec: str, count: int, seed: int, hosts: Hosts, kind: str = "normal", number: int = 0) -> np.ndarray:
    """Sum number ``number`` of a command ``sums`` with ``seed``."""
    mine = parts(kind, count, seed + number, sum(map(len, hosts)))
    if codec == "none" and count < SMALL:
        hosts = [[rank] for rank in range(len(mine))]
    return wire.total(mine, codec, seed, f"allreduce.hvtrain_coded_{codec}.s{number}", hosts)


def allowed(codec: str, mine: list[np.ndarray]) -> np.ndarray:
    """How far each number of a sum, over hosts of one rank, may be from the sum in double precision."""
    exact = [np.abs(each.astype(np.float64)) for each in mine]
    total = np.abs(sum(each.astype(np.float64) for each in mine))
    sizes = sum(exact) + total
    float32 = sizes * len(mine) * 2.0**-24
    if codec == "none":
        return float32
    if codec == "bf16":
        return sizes * 1.01 * 2.0**-8 + float32
    largest = sum(per_block(each) for each in (*exact, total))
    if codec == "fp16":
        return sizes * 1.01 * 2.0**-11 + largest * 2.0**-38 + float32
    return largest * 1.02 / 127 + float32


def per_block(values: np.ndarray) -> np.ndarray:
    """Each number's block's largest. Blocks begin at whole multiples of 1,024, whoever owns them."""
    padded = np.zeros(-(-len(values) // wire.BLOCK) * wire.BLOCK)
    padded[:len(values)] = values
    return np.repeat(padded.reshape(-1, wire.BLOCK).max(1), wire.BLOCK)[:len(values)]


def shares_memory(members: list[Member]) -> bool:
    """Whether this machine lets processes read each other's memory."""
    return set(on_all(members, "memory", count=10)) == {"shared"}
