"""How many threads workers compute with: one number for all hosts, however many cores these have for a slot."""

from __future__ import annotations

from hvtrain.config import Job
from hvtrain.control.shares import Shares
from hvtrain.launch.contact import Met, Party
from hvtrain.launch.hostrun import _with_threads
from hvtrain.launch.hosts import HostSlots, of_list


def test_the_least_that_is_offered_when_the_first_worker_starts() -> None:
    shares = Shares()
    for agent, slots, threads in (("a", 2, 4), ("b", 4, 2), ("gone", 1, 1), ("stands by", 0, 1)):
        shares.offer(agent, slots, threads)
    shares.withdraw("gone")
    assert shares.each() == 2
    shares.offer("comes later", 8, 1)
    shares.withdraw("b")
    assert shares.each() == 2, "a worker that is replaced must compute as the lost one did"


def test_nobody_offers_anything() -> None:
    assert Shares().each() == 1


def with_threads(threads: int | str, **cores: int) -> int | str:
    job = Job.model_validate({"task": {"target": "m:t"}, "data": {"global_batch": 4}, "train": {"epochs": 1},
                              "optim": {"name": "sgd", "lr": 1.0}, "launch": {"threads": threads}})
    met: dict[HostSlots, Met] = {host: Met(host, None, {"cores": cores[host.name]}) for host in of_list("h1:4,h2:2")}
    return _with_threads(job, Party(met)).launch.threads


def test_over_hosts_that_are_met_the_number_does_not_depend_on_who_comes_first() -> None:
    """Two workers of one thread, one of two: which of them took a lost one's place decided about the last bits."""
    assert with_threads("auto", h1=8, h2=8) == 2
    assert with_threads("auto", h1=2, h2=8) == 1
    assert with_threads(3, h1=2, h2=8) == 3
