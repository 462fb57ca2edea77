"""The membership machine among honest but mortal workers, with deaths, delays and crossing messages in any order."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from hvtrain.control import events as e
from hvtrain.control.causes import Cause
from hvtrain.control.roster import Limits
from hvtrain.errors import ExitCode
from tests.support.membership_crowd import BUG, Job
from tests.support.membership_laws import tick_until_later

DIVERGED = Cause(ExitCode.DIVERGED, "the loss is nan", salvage=False)
ANY = st.integers(0, 9)
LENIENT = 10_000


class AnyOrder(RuleBasedStateMachine):
    """Rules are what may happen; :mod:`tests.support.membership_laws` holds what must be true after each."""

    @initialize(wanted=st.integers(1, 4), follow=st.booleans(), low=st.integers(1, 2), high=st.sampled_from([None, 3]),
                spares=st.sampled_from([0, 0, 1]), elastic=st.sampled_from([True, True, True, False]),
                failures=st.sampled_from([LENIENT, LENIENT, 2]), losses=st.sampled_from([None, None, 3]),
                replace=st.sampled_from([0.0, 1.0]), slots=st.sampled_from([4, 2, 1]))
    def begin(self, wanted, follow, low, high, spares, elastic, failures, losses, replace, slots):
        limits = Limits(start=20.0, stop=6.0, heartbeat=3.0, replace=replace, form=5.0, step=8.0, elastic=elastic,
                        min_workers=min(low, wanted), max_workers=max(high, wanted) if high else None, spares=spares,
                        failures_per_step=failures, losses_per_hour=losses)
        self.job = Job(limits=limits, wanted=wanted, follow=follow)
        self.may_fail = not elastic or failures != LENIENT or losses is not None  # whether it may end other than well
        self.named = 0
        for _ in range(-(-wanted // slots)):
            self.agent_joins(slots)
        self.run_freely()

    # Choosing --------------------------------------------------------------------------------------------
    def worker(self, number):
        alive = [worker for worker in self.job.workers.values() if worker.alive]
        return alive[number % len(alive)] if alive else None

    def agent(self, number):
        alive = [agent for agent in self.job.agents.values() if agent.alive]
        return alive[number % len(alive)] if alive else None

    def queues(self):
        everybody = [*self.job.workers.values(), *self.job.agents.values()]
        return [(who, way) for who in everybody for way in ("up", "down")
                if getattr(who, way) and not (way == "down" and who.stalled)]

    # The ordinary course of things -------------------------------------------------------------------------
    @rule(seed=st.integers(0, 1000), count=st.integers(1, 60))
    def run_a_little(self, seed, count):
        """Some deliveries and some progress, in any order."""
        chance = random.Random(seed)
        for _ in range(count):
            queues = self.queues()
            workers = [worker for worker in self.job.workers.values() if worker.alive]
            if queues and chance.random() < 0.6:
                self.job.deliver(*chance.choice(queues))
            elif workers:
                chance.choice(workers).act(unlucky=chance.random() < 0.2)

    @rule()
    def run_freely(self, steps=1):
        """Deliver everything and let everybody act, until nobody can or a step has been taken."""
        goal = max([worker.step for worker in self.job.workers.values()], default=-1) + steps
        going = True
        while going:
            going = False
            while queues := self.queues():
                going |= any([self.job.deliver(*queue) for queue in queues])
            for worker in list(self.job.workers.values()):
                going |= worker.step < goal and worker.act()

    def beat(self):
        for somebody in [*self.job.agents.values(), *self.job.workers.values()]:
            somebody.beat()

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0]))
    def time_passes(self, seconds):
        self.job.now += seconds
        self.beat()
        while queues := [queue for queue in self.queues() if queue[1] == "up"]:
            self.job.deliver(*queues[0])
        tick_until_later(self.job)

    @precondition(lambda self: not self.job.over)
    @rule()
    def a_tick_at_the_deadline(self):
        """Nobody says anything until then."""
        self.job.now = max(self.job.now, self.job.due)
        tick_until_later(self.job)

    # What goes wrong ---------------------------------------------------------------------------------------
    @rule(number=ANY, how=st.sampled_from([(0, 9), (0, 11), (1, 0)]))
    def a_worker_dies(self, number, how):
        if worker := self.worker(number):
            self.may_fail |= how != (0, 9) and not self.job.state.born  # its successor would do the same
            worker.die(*how)

    @rule(number=ANY, cause=st.sampled_from([BUG, BUG, DIVERGED]))
    def a_worker_raises(self, number, cause):
        if worker := self.worker(number):
            self.may_fail |= not cause.passing or not self.job.state.born
            worker.fail(cause)

    @rule(number=ANY)
    def a_worker_is_stopped(self, number):
        if worker := self.worker(number):
            self.may_fail |= worker.mode == "building" and not self.job.state.born
            worker.stalled = True

    @rule(number=ANY)
    def a_worker_hangs(self, number):
        if worker := self.worker(number):
            self.may_fail |= worker.mode == "building" and not self.job.state.born
            worker.stuck = True

    @rule(number=ANY)
    def a_connection_breaks(self, number):
        if worker := self.worker(number):
            worker.reconnect()

    @rule(number=ANY)
    def a_worker_leaves(self, number):
        if worker := self.worker(number):
            worker.say(e.WorkerLeaving(worker.name))

    @rule(number=ANY)
    def an_agent_dies(self, number):
        if agent := self.agent(number):
            agent.die()

    @rule(number=ANY)
    def an_agent_is_stopped(self, number):
        if agent := self.agent(number):
            agent.stalled = True

    @rule(number=ANY)
    def an_agent_loses_its_connection(self, number):
        if agent := self.agent(number):
            agent.reconnect()

    @rule(number=ANY)
    def an_agent_is_out_of_the_others_reach(self, number):
        if agent := self.agent(number):
            agent.out_of_reach = True

    @rule(number=ANY)
    def an_agent_leaves(self, number):
        if agent := self.agent(number):
            agent.say(e.AgentLeaving(agent.name))

    @rule(slots=st.integers(1, 3))
    def agent_joins(self, slots):
        self.job.join(f"a{self.named}", slots)
        self.named += 1

    @rule(slots=st.integers(1, 2), rounds=st.integers(1, 12))
    def an_agent_joins_that_the_others_do_not_reach(self, slots, rounds):
        """All try again and again to form a round with its workers."""
        self.agent_joins(slots)
        self.job.agents[f"a{self.named - 1}"].out_of_reach = True
        for _ in range(rounds):
            self.run_freely()
            self.time_passes(1.0)

    @rule(workers=st.integers(1, 5))
    def somebody_scales(self, workers):
        self.job.feed(e.ScaleRequested(workers))

    @rule(insist=st.booleans())
    def somebody_stops(self, insist):
        self.may_fail = True
        self.job.feed(e.StopRequested(15, insist))

    # In the end ----------------------------------------------------------------------------------------------
    def teardown(self):
        """All faults cease. Whatever has happened, the job ends, well if it can, and nobody is left behind."""
        if not hasattr(self, "job"):
            return
        job = self.job
        for agent in job.agents.values():
            agent.out_of_reach = False
        self.agent_joins(5)
        for _ in range(400):
            self.run_freely(steps=job.steps)
            if job.over:
                break
            job.now += 0.5
            self.beat()
            tick_until_later(job)
        assert job.over, f"no end: {job.state}"
        (cause,) = job.ends
        if cause.exit_code == ExitCode.DONE:
            assert job.state.progress == job.steps
        else:
            accepted = ("elastic.min_workers", "could not connect", "before the workers could agree", "slots joined",
                        "after a checkpoint")
            assert self.may_fail or any(words in cause.reason for words in accepted), cause
        left = [worker.name for worker in job.workers.values() if worker.alive and not worker.agent.stalled]
        assert not left or job.state.killed, left
        assert len(job.state.losses) <= job.state.next_number


# Without "explain", which traces every line: a failing example of thousands of events would take for ever.
AnyOrder.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink])
TestAnyOrder = AnyOrder.TestCase
