"""Ranks, local ranks and cross ranks of a round's members, as Horovod counts them."""

from __future__ import annotations

from collections import Counter

from hvtrain.control import events, messages


def assign(action: events.FormRound, *, rendezvous: tuple[str, int], interface: str,
           secret: str = "", first: bool = True, job: str = "", apart: bool = False) -> list[messages.Seat]:
    """The members' seats in rank order: rank counts all, local rank within a host, cross rank over hosts."""
    per_host = Counter(host for _, host in action.members)
    hosts = list(per_host)
    local_ranks = [sum(host == other for _, other in action.members[:rank])
                   for rank, (_, host) in enumerate(action.members)]
    result = []
    for rank, (_, host) in enumerate(action.members):
        local = local_ranks[rank]
        peers = [other for other in hosts if per_host[other] > local]  # hosts that have such a local rank
        result.append(messages.Seat(
            round=action.round, rank=rank, size=len(action.members), local_rank=local,
            local_size=per_host[host], cross_rank=peers.index(host), cross_size=len(peers), host=host,
            rendezvous_host=rendezvous[0], rendezvous_port=rendezvous[1], interface=interface, secret=secret,
            fresh=action.fresh, first=first, job=job, apart=apart))
    return result
