"""Who is a member of the next round, and with which rank.

::

    before:  0:w0  1:w1  2:w2  3:w3       ready:  w0 w2 w3 and the newcomer w4
    next:    0:w0  1:w4  2:w2  3:w3       survivors in their order, newcomers first on the ranks of those who are gone

Whoever knows the latest step comes first: a round without one of those would have to take steps again.
"""

from __future__ import annotations

from hvtrain.control.roster import Stage, State, Worker


def seats(state: State) -> tuple[str, ...]:
    """Names of the next round's members in rank order."""
    ready = dict(state.at(Stage.READY))
    before = {name: rank for rank, name in enumerate(state.round.members)}

    def order(name: str) -> tuple[int, int, int]:
        return -ready[name].step, before.get(name, len(before)), ready[name].number

    staying = sorted((name for name, worker in ready.items() if not worker.leave), key=order)
    leaving = sorted((name for name, worker in ready.items() if worker.leave), key=order)
    chosen = staying[:state.target]
    # Who is to leave stays for as long as nobody else has its state, or there would be too few.
    needed = max(0, state.least - len(chosen))
    if leaving and (not chosen or ready[leaving[0]].step > ready[chosen[0]].step):
        needed = max(1, needed)
    members = {name: ready[name] for name in chosen + leaving[:needed]}
    return _in_rank_order(state.round.members, members)


def _in_rank_order(before: tuple[str, ...], members: dict[str, Worker]) -> tuple[str, ...]:
    newcomers = sorted(members.keys() - set(before), key=lambda name: members[name].number)
    row: list[str] = []
    for rank, name in enumerate(before):
        if name in members:
            row.append(name)
        elif newcomers:
            row.append(_take(newcomers, rank=rank, members=members))
    return tuple(row + newcomers)


def _take(newcomers: list[str], *, rank: int, members: dict[str, Worker]) -> str:
    """The newcomer that was started for this rank, else the oldest."""
    found = next((name for name in newcomers if members[name].rank == rank), newcomers[0])
    newcomers.remove(found)
    return found
