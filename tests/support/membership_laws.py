"""What must hold after every event, whatever has happened in whatever order."""

from __future__ import annotations

from hvtrain.control import events as e
from hvtrain.control import watching
from hvtrain.control.crew import Crew
from hvtrain.control.membership import deadline, step
from hvtrain.control.roster import HOUR, Phase, Stage, Status

SIGNS = (e.WorkerBeat, e.AgentBeat)


class Laws:
    """Remembers what a job has been told, and holds every new step of the machine against it.

    ``thorough``: also what takes time in proportion to the number of workers.
    """

    def __init__(self, job, thorough=True):
        self.job, self.thorough = job, thorough
        self.lost, self.members, self.number = set(), (), 0

    def hold(self, before, event, actions):
        state = self.job.state
        for action in actions:
            self._of_action(before, event, state, action)
        if isinstance(event, e.WorkerExited):
            self.lost.add(event.worker)
        assert (deadline(state) is None) == (state.phase is Phase.OVER), "a wait without an end"
        assert len(self.job.ends) == (state.phase is Phase.OVER)
        if self.thorough and state.phase is not Phase.OVER:
            self._counts_are_right(state)
            self._waits_are_sane(before, state)
            if not isinstance(event, SIGNS):
                self._nothing_is_left_to_do(state)

    def _of_action(self, before, event, state, action):
        if isinstance(action, e.ReportLoss):
            assert action.worker not in self.lost, f"{action.worker} was lost twice"
            self.lost.add(action.worker)
        elif isinstance(action, e.FormRound):
            self._of_round(before, state, action)
        elif isinstance(action, (e.CutRound, e.PauseRound, e.TellStop)):
            assert not self.lost & set(action.workers), "a lost worker is told something"
        elif isinstance(action, e.KillWorker):
            assert action.worker in before.workers or action.worker in state.workers
        elif isinstance(action, e.Dismiss) and state.phase is Phase.OPEN and not isinstance(event, e.AgentLost):
            self._of_dismissal(state, action)
        if isinstance(action, e.CutRound):
            assert action.round == self.number

    @staticmethod
    def _of_dismissal(state, action):
        told = [state.workers[name] for name in action.workers if name in state.workers]  # others: of a lost agent
        left_out = (Stage.READY, Stage.RETURNING) if action.reason else ()  # newcomers: those that have trained stay
        seated = [worker.step for _, worker in state.at(Stage.SEATED, Stage.FINISHED, *left_out)]
        assert all(worker.step <= max(seated, default=-1) for worker in told), "the latest step goes home"

    def _of_round(self, before, state, action):
        members = tuple(name for name, _ in action.members)
        assert action.round == self.number + 1
        assert members and len(set(members)) == len(members)
        assert before.round.status is not Status.FORMING or before.round.number < action.round
        assert not self.lost & set(members), "a round with a lost worker"
        if state.phase is Phase.OPEN and state.round.status is Status.FORMING:
            assert [state.workers[name].rank for name in members] == list(range(len(members)))
            assert all(state.workers[name].stage is Stage.SEATED for name in members)
            assert state.workers.count(Stage.SEATED) == len(members)
            known = [worker.step for _, worker in state.at(Stage.READY, Stage.SEATED)]
            assert max(state.workers[name].step for name in members) == max(known), "the latest step was left out"
        assert [m for m in members if m in self.members] == [m for m in self.members if m in members]
        assert len(members) >= state.least
        staying = sum(not state.workers[name].leave for name in members if name in state.workers)
        assert staying <= state.target
        self.members, self.number = members, action.round

    @staticmethod
    def _counts_are_right(state):
        again = Crew(dict(state.workers))
        for stage in Stage:
            assert state.workers.count(stage) == again.count(stage), stage
            assert state.workers.staying(stage) == again.staying(stage), stage

    def _waits_are_sane(self, before, state):
        waits = list(watching.waits(state))
        for wait in waits:
            if wait.name in state.workers and state.workers[wait.name].stage is Stage.DOOMED:
                assert wait.what == "death", "somebody waits for a lost worker"
        if state.step_limit >= before.step_limit:  # a shorter limit is noticed with the next look
            assert deadline(state) <= min(wait.at for wait in waits)
        assert all(self.job.now - t <= HOUR for t in state.losses)

    def _nothing_is_left_to_do(self, state):
        """Whatever follows from a state has followed: without a wait that has ended, a Tick changes nothing."""
        now = self.job.now
        if all(wait.at > now for wait in watching.waits(state)):
            after, actions = step(state, e.Tick(), now)
            assert not actions, f"left undone: {actions}"
            assert _without_due(after) == _without_due(state)


def _without_due(state):
    values = dict(vars(state))
    del values["due"]
    return {**values, "agents": dict(state.agents), "workers": dict(state.workers)}


def tick_until_later(job):
    """Ticks at the deadline get somewhere: within 50 of them it lies in the future, or the job is over."""
    for _ in range(50):
        if job.over or job.due > job.now:
            return
        job.feed(e.Tick())
    raise AssertionError(f"busy: {[w for w in watching.waits(job.state) if w.at <= job.now]}")
