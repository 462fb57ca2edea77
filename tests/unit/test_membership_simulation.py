"""A thousand workers, a third of which die, some with their agents: all are replaced, and the job ends well.

Deterministic: one seed, and a clock of its own.
"""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from hvtrain.control import events as e
from hvtrain.control.roster import Limits
from hvtrain.errors import ExitCode
from tests.support.membership_crowd import Job

BEAT, STEP = 2.0, 0.5


class Simulation(Job):
    """A job whose messages take up to 5 ms, on a clock that jumps from one event to the next."""

    def __init__(self, *, seed, **kwargs):
        super().__init__(**kwargs)
        self.laws.thorough = False
        self.chance, self.order = random.Random(seed), itertools.count()
        self.heap, self.stirring, self.arrival, self.sizes = [], set(), {}, []

    def after(self, seconds, what, *arguments):
        heapq.heappush(self.heap, (self.now + seconds, next(self.order), what, arguments))

    def queued(self, who, way):
        """Messages of a connection keep their order."""
        at = max(self.now + self.chance.uniform(0.0005, 0.005), self.arrival.get((who.name, way), 0.0))
        self.arrival[who.name, way] = at
        self.after(at - self.now, self.deliver, who, way)

    def stirred(self, worker):
        if worker.name not in self.stirring:
            self.stirring.add(worker.name)
            pause = {"building": self.chance.uniform(0.3, 1.2), "training": STEP}.get(worker.mode, 0.01)
            self.after(pause, self._act, worker)

    def stirred_round(self, number):
        if number not in self.stirring:
            self.stirring.add(number)
            self.after(0.01, self._stir, number)

    def _stir(self, number):
        self.stirring.discard(number)
        for name in self.rounds[number].members:
            worker = self.workers[name]
            if worker.alive and worker.round == number and worker.name not in self.stirring:
                self.stirring.add(worker.name)
                self.after(self.chance.uniform(0.0, 0.005), self._act, worker)

    def _act(self, worker):
        self.stirring.discard(worker.name)
        if worker.act() and worker.alive:
            self.stirred(worker)

    def _carry_out(self, action):
        super()._carry_out(action)
        if isinstance(action, e.FormRound):
            self.sizes.append(len(action.members))

    def spawn(self, name, agent):
        super().spawn(name, agent)
        self.after(self.chance.uniform(0, BEAT), self._beat, self.workers[name])

    def join(self, name, slots):
        agent = super().join(name, slots)
        self.after(self.chance.uniform(0, BEAT), self._beat, agent)
        return agent

    def _beat(self, somebody):
        if somebody.alive and not self.over:
            somebody.beat()
            self.after(BEAT, self._beat, somebody)

    def run(self):
        looked, due = None, 0.0
        while not self.over:
            if looked is not self.state:
                looked, due = self.state, self.due
            at = self.heap[0][0] if self.heap else float("inf")
            if due < at:
                self.now = max(self.now, due)
                self.feed(e.Tick())
            else:
                self.now, _, what, arguments = heapq.heappop(self.heap)
                what(*arguments)
        return self


def some(simulation, count, *, agents=False):
    """Kill so many workers, or agents with all their workers; agents come back after a while."""
    for _ in range(count):
        alive = [worker for worker in simulation.workers.values() if worker.alive]
        victim = simulation.chance.choice(alive)
        if not agents:
            victim.die(0, 9)
            continue
        victim.agent.die()
        simulation.after(simulation.chance.uniform(0.5, 4.0), simulation.join, f"{victim.agent.name}+",
                         victim.agent.slots)


@pytest.mark.parametrize("agents, slots", [(1000, 1), (125, 8)])
def test_a_thousand_workers_a_third_of_which_die(agents, slots):
    limits = Limits(start=60.0, stop=20.0, heartbeat=10.0, replace=2.0, min_workers=500)
    simulation = Simulation(seed=agents, limits=limits, wanted=1000, steps=20)
    for number in range(agents):
        simulation.join(f"a{number:04d}", slots)
    for wave in range(5):
        lost = 1 if wave == 0 else 65
        simulation.after(4.0 + 4.0 * wave, lambda lost=lost: some(simulation, lost))
        simulation.after(4.5 + 4.0 * wave, lambda: some(simulation, max(1, 8 // slots), agents=True))
    simulation.run()
    (cause,) = simulation.ends
    assert cause.exit_code == ExitCode.DONE and simulation.state.progress == 20
    assert len(simulation.laws.lost) >= 300
    assert simulation.sizes[0] == simulation.sizes[-1] == 1000 and min(simulation.sizes) >= 900
    assert not any(worker.alive for worker in simulation.workers.values())
