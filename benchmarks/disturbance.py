"""Breaking a running job again and again, and watching what becomes of it."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outages import Outage, Step, complete, outage

if TYPE_CHECKING:
    from elastic_jobs import Job

POLL_SECONDS = 0.05
"""How often the workers' files are looked at. No figure depends on it: times are those that the workers wrote."""

PHASE_SECONDS = 10
"""How long a worker may take to come to the phase that it is to die in."""

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


@dataclass(frozen=True)
class Plan:
    """How a job is broken.

    A fault comes when all workers have committed ``settle`` steps together since the last recovery, plus a random
    time of up to ``spread`` seconds. It hits ``at_once`` workers; ``rank`` is "any", "0" (among them) or "other".
    ``patience`` bounds the wait for the next step, ``full_patience`` the wait from there to full strength,
    ``start`` the wait for a job's first steps.
    """

    fault: str = "kill"
    at_once: int = 1
    rank: str = "any"
    settle: int = 20
    spread: float = 1.0
    patience: float = 120.0
    full_patience: float = 30.0
    start: float = 180.0

    def steps(self, kills: int, period: float) -> int:
        """Length of a job that has room for so many faults."""
        return kills * (self.settle + int(self.spread / period) + 10) + self.reserve(period)

    def reserve(self, period: float) -> int:
        """Steps before a job's end in which no fault comes any more."""
        return self.settle + int(self.spread / period) + 10


class Disturbance:
    """Breaks ``job`` by ``plan``. ``outages`` and ``ending`` (why it was no longer broken) are its findings."""

    def __init__(self, job: Job, plan: Plan, chance: random.Random):
        self._job, self._plan, self._chance = job, plan, chance
        self._since = 0.0
        self.outages: list[Outage] = []
        self.ending = ""

    def run(self, faults: int) -> None:
        """Break the job up to ``faults`` times, while it comes back to full strength and has steps left."""
        period = self._job.setup.period
        while len(self.outages) < faults:
            steps = self._settled()
            if not steps:
                return
            if steps[-1].number > self._job.steps - self._plan.reserve(period):
                self.ending = "no steps left"
                return
            self._watch(self._chance.uniform(0.0, self._plan.spread))
            victims = self._choose(self._full()[-1])
            moment = self._break(victims)
            if moment is None:
                return
            found = self._follow(moment, victims)
            self.outages.append(found)
            if found.full_seconds is None:
                self.ending = self.ending or "not at full strength again"
                return
            self._since = found.time + found.full_seconds
        self.ending = "all faults done"

    def pauses(self) -> list[tuple[float, float]]:
        """When the job was not undisturbed: from each fault to full strength."""
        return [(each.time, each.time + each.full_seconds if each.full_seconds is not None else float("inf"))
                for each in self.outages]

    def _full(self) -> list[Step]:
        """Steps at full strength since the last recovery."""
        return [step for step in complete(self._job.lines, after=self._since) if step.size == self._job.setup.workers]

    def _settled(self) -> list[Step]:
        """Wait for ``settle`` undisturbed steps; without them ``ending`` says why."""
        limit = self._plan.patience if self.outages else self._plan.start
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            running = self._job.look()
            steps = self._full()
            if len(steps) >= self._plan.settle and running:
                return steps
            if not running:
                self.ending = f"the job ended with {self._job.process.poll()}"
                return []
            time.sleep(POLL_SECONDS)
        self.ending = f"fewer than {self._plan.settle} steps in {limit:.0f} s"
        return []

    def _watch(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, POLL_SECONDS))
        self._job.look()

    def _choose(self, step: Step) -> dict[int, int]:
        """Victims as pid -> rank: they have just committed ``step``, so they are workers and no launcher's process."""
        ranks = list(range(step.size))
        if self._plan.rank == "0":
            chosen = [0, *self._chance.sample(ranks[1:], self._plan.at_once - 1)]
        else:
            chosen = self._chance.sample(ranks if self._plan.rank == "any" else ranks[1:], self._plan.at_once)
        return {step.pids[rank]: rank for rank in chosen}

    def _break(self, victims: dict[int, int]) -> float | None:
        """Strike; returns when. Where a phase is aimed at, that is when the last victim has come to it.

        None, and ``ending``: a victim was gone already, or has not come to its phase.
        """
        if not all(self._job.owns(pid) for pid in victims):
            self.ending = "a worker was gone before it was broken"
            return None
        moment = time.time()
        number = signal.SIGUSR1 if self._job.setup.phase else SIGNALS[self._plan.fault]
        for pid in victims:
            os.kill(pid, number)
        if not self._job.setup.phase:
            return moment
        deadline = time.monotonic() + PHASE_SECONDS
        while not all(note.exists() for note in map(self._job.note, victims)):
            if time.monotonic() > deadline:
                self.ending = f"a worker has not come to the phase {self._job.setup.phase} in {PHASE_SECONDS} s"
                return None
            time.sleep(0.005)
        return max(float(self._job.note(pid).read_text()) for pid in victims)

    def _follow(self, moment: float, victims: dict[int, int]) -> Outage:
        """Watch until the job is at full strength, has ended, or patience has."""
        while True:
            running = self._job.look()
            found = outage(self._job.lines, time=moment, victims=victims, strength=self._job.setup.workers)
            waited = time.time() - moment
            if found.full_seconds is not None:
                return found
            if not running:
                self.ending = f"the job ended with {self._job.process.poll()}"
                return found
            if waited > self._plan.patience + self._plan.full_patience or (
                    waited > self._plan.patience if found.next_seconds is None
                    else waited > found.next_seconds + self._plan.full_patience):
                return found
            time.sleep(POLL_SECONDS)
