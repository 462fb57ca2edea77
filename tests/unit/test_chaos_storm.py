"""Random strikes: the same for the same seed, with the right mean, in order."""

from __future__ import annotations

import asyncio
import itertools
from statistics import mean, pstdev

import pytest

from hvtrain.chaos.plan import Plan
from hvtrain.chaos.storm import pick, strikes
from hvtrain.launch.storms import rage


def plan_of(*faults, seed=0):
    return Plan.model_validate({"seed": seed, "faults": list(faults)})


def test_known_strikes():
    """A seed that is written in a report means these very strikes, on every machine and in every version."""
    found = itertools.islice(strikes(plan_of({"kind": "kill", "every": "2s"}, seed=7)), 2)
    assert [(round(strike.after, 6), strike.kind, round(strike.draw, 6)) for strike in found] == [
        (3.340381, "kill", 0.139691), (4.053386, "kill", 0.384848)]


def test_gaps_are_exponential_and_victims_even():
    found = list(itertools.islice(strikes(plan_of({"kind": "kill", "every": "2s"})), 20000))
    gaps = [later.after - earlier.after for earlier, later in itertools.pairwise(found)]
    assert mean(gaps) == pytest.approx(2.0, rel=0.05) and pstdev(gaps) == pytest.approx(2.0, rel=0.05)
    hits = [pick(strike.draw, "abcd") for strike in found]
    assert all(hits.count(name) == pytest.approx(5000, rel=0.1) for name in "abcd")
    assert [strike.number for strike in found] == list(range(20000))


def test_it_ends_with_during_and_counts_every_fault_by_itself():
    plan = plan_of({"kind": "raise", "step": 3}, {"kind": "kill", "every": "1s", "during": "60s"},
                   {"kind": "stop", "every": "10s", "during": "2m"})
    found = list(strikes(plan))
    assert [strike.after for strike in found] == sorted(strike.after for strike in found)
    kills, stops = ([strike for strike in found if strike.fault == fault] for fault in (1, 2))
    assert {strike.kind for strike in kills} == {"kill"} and {strike.kind for strike in stops} == {"stop"}
    assert kills[-1].after <= 60 < stops[-1].after <= 120
    assert 30 < len(kills) < 100


def test_the_seed_decides():
    storm = {"kind": "kill", "every": "1s", "during": "60s"}
    assert list(strikes(plan_of(storm, seed=1))) == list(strikes(plan_of(storm), 1))
    assert list(strikes(plan_of(storm, seed=1))) != list(strikes(plan_of(storm, seed=2)))


def test_a_plan_without_chance():
    assert list(strikes(plan_of({"kind": "kill", "step": 3}))) == []


def test_pick_covers_the_ends():
    assert pick(0.0, [5, 6]) == 5 and pick(0.999999, [5, 6]) == 6 and pick(0.7, [5]) == 5


def test_nobody_is_struck_twice(tmp_path):
    """Two kills 30 ms apart both chose one worker, before its death was known: the second one hit nobody."""
    struck = []

    class Slow:
        """A coordinator that has heard of no death yet."""

        def members(self):
            return [{"worker": f"w{pid}", "pid": pid, "rank": pid, "step": 1, "round": 1} for pid in range(3)]

        async def signal(self, worker, number):
            struck.append(worker)

    plan = plan_of({"kind": "kill", "every": "30ms", "during": "600ms"})
    asyncio.run(rage(plan, Slow(), tmp_path))
    assert sorted(struck) == ["w0", "w1", "w2"]
