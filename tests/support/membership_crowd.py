"""Honest but mortal workers and agents around the membership machine: a job without processes and sockets.

A worker answers Seat, Cut, Pause, Stop and Dismiss as hvtrain/control/remote.py and hvtrain/loop.py do. Messages of one
connection keep their order, those of different ones cross as they like: what is delivered next, and who acts, is up to
the test.
"""

from __future__ import annotations

from collections import defaultdict, deque

from hvtrain.control import events as e
from hvtrain.control.causes import Cause
from hvtrain.control.membership import deadline, step
from hvtrain.control.roster import Phase, State
from hvtrain.errors import ExitCode
from tests.support.membership_laws import Laws

BUG = Cause(ExitCode.USER_CODE, "ValueError: boom", "Traceback ...", kind="raised")


class Gathering:
    """What the members of a round do together: connect, agree on a state, reduce."""

    def __init__(self, members):
        self.members = members
        self.standing = {}  # member -> (its step, whether it stops there), as it came in
        self.gone = set()  # dead, or back for another round
        self.given = defaultdict(set)  # step -> members that have given their part
        self.flags = defaultdict(set)  # step -> "stop", "pause": what anybody asked for

    def all_in(self):
        return len(self.standing) == len(self.members)


class Worker:
    """One worker process and the queues of its connection."""

    def __init__(self, job, name, agent):
        self.job, self.name, self.agent = job, name, agent
        self.mode, self.step, self.ticks, self.round = "building", -1, 0, 0
        self.waiting = self.alive = True
        self.waiting = self.stalled = self.stuck = self.halt = False
        self.inbox, self.up, self.down = deque(), deque(), deque()
        self.cut_round, self.pause, self.stop, self.dismissed = 0, 0, False, None

    def say(self, event):
        self.up.append(event)
        self.job.queued(self, "up")

    def beat(self):
        if self.alive and not self.stalled and self.mode != "building":
            self.say(e.WorkerBeat(self.name, max(self.step, 0), self.ticks, self.waiting))

    def hear(self, kind, value=None):
        """The link's thread."""
        if not self.alive:
            return
        if kind == "seat":
            self.inbox.append(value)
        elif kind == "cut" and value >= self.round:
            self.cut_round = value
        elif kind == "pause":
            self.pause = value
        elif kind == "stop":
            self.stop = True
        elif kind == "dismiss":
            self.dismissed = value
        self.job.stirred(self)

    def reconnect(self):
        """The connection breaks and is opened again: what was on its way is lost."""
        self.up.clear(), self.down.clear()
        if self.mode == "waiting":
            self.say(e.WorkerReady(self.name, self.step, self.round))

    # The main thread -------------------------------------------------------------------------------------
    def act(self, unlucky=False):
        """Get on with what it is doing, if that is possible. ``unlucky``: what may fail does fail."""
        if self.alive and not self.stalled and not self.stuck:
            return getattr(self, f"_{self.mode}")(unlucky)
        return False

    @property
    def _place(self):
        return self.job.rounds[self.round]

    def _come_back(self):
        if self.round:
            self._place.gone.add(self.name)
            self.job.stirred_round(self.round)
        self.mode, self.waiting = "waiting", False
        self.say(e.WorkerReady(self.name, self.step, self.round))
        self.job.stirred(self)
        return True

    def _building(self, unlucky):
        return self._come_back()

    def _waiting(self, unlucky):
        if self.dismissed is not None:
            return self._end()
        if not self.inbox:
            return False
        self.round, self.mode = self.inbox.popleft(), "forming"
        self._place.standing[self.name] = self.step, self.halt
        self.job.stirred_round(self.round)
        return True

    def _cut(self):
        return self.cut_round >= self.round or self.dismissed is not None

    def _out_of_reach(self):
        """Whether a member of its round has no connection to those of other hosts."""
        there = [self.job.workers[name].agent for name in self._place.members]
        return len(set(there)) > 1 and any(agent.out_of_reach for agent in there)

    def _forming(self, unlucky):
        place = self._place
        broken = place.gone & set(place.members)
        if self._cut() or (broken and (unlucky or not place.all_in())) or self._out_of_reach():
            return self._come_back()
        if not place.all_in():
            return False
        self.step, self.halt = max(place.standing.values())
        if self.step < 0:  # nobody trains on
            self.step, self.halt = self.job.kept, False
        self.say(e.WorkerFormed(self.name, self.round, self.step))
        self.mode, self.ticks = "training", self.ticks + 1
        self._look_at_the_end()
        self.job.stirred(self)
        return True

    def _training(self, unlucky):
        place = self._place
        given = place.given[self.step]
        if self._cut() or (place.gone and (unlucky or len(given) < len(place.members))):
            return self._come_back()
        if self.name not in given:
            given.add(self.name)
            place.flags[self.step] |= {"stop"} if self.stop else set()
            place.flags[self.step] |= {"pause"} if self.pause == self.round else set()
            self.ticks, self.waiting = self.ticks + 1, True
            if len(given) == len(place.members):
                self.job.stirred_round(self.round)
            return True
        if len(given) < len(place.members):
            return False
        flags = place.flags[self.step]
        self.step, self.ticks, self.waiting, self.halt = self.step + 1, self.ticks + 1, False, "stop" in flags
        self.job.kept = max(self.job.kept, self.step // 4 * 4)
        self.job.stirred(self)
        if not self._look_at_the_end() and "pause" in flags:
            self._come_back()
        return True

    def _look_at_the_end(self):
        if self.step < self.job.steps and not self.halt:
            return False
        self.mode = "concluding"
        self.say(e.WorkerEnded(self.name, None, stopped=self.step < self.job.steps, step=self.step))
        return True

    def _concluding(self, unlucky):
        if self.dismissed is not None:
            return self._end()
        return self._come_back() if self.cut_round >= self.round else False

    def _end(self):
        self.say(e.WorkerEnded(self.name, None, stopped=True, left=True, step=max(self.step, 0)))
        self.die(0, 0)
        return True

    # Its ends --------------------------------------------------------------------------------------------
    def fail(self, cause=BUG):
        """It raises."""
        if self.alive:
            self.say(e.WorkerEnded(self.name, cause, step=max(self.step, 0)))
            self.die(1, 0)

    def die(self, code, signal, unheard=False):
        if not self.alive:
            return
        self.alive, self.mode = False, "dead"
        self.down.clear()
        if self.round:
            self._place.gone.add(self.name)
            self.job.stirred_round(self.round)
        if self.agent.alive and not unheard:
            self.agent.say(e.WorkerExited(self.name, code, signal))


class Agent:
    def __init__(self, job, name, slots):
        self.job, self.name, self.slots = job, name, slots
        self.alive, self.stalled = True, False
        self.connected = False  # what is sent over a connection that is broken never arrives
        self.out_of_reach = False  # of other hosts, though not of the coordinator
        self.up, self.down = deque(), deque()

    def say(self, event):
        self.up.append(event)
        self.job.queued(self, "up")

    def beat(self):
        if self.alive and not self.stalled:
            self.say(e.AgentBeat(self.name))

    def hear(self, kind, value):
        if not self.alive:
            return
        if kind == "start":
            self.job.spawn(value, self)
        elif kind == "kill" and value in self.job.workers:
            self.job.workers[value].die(0, 9)
        elif kind == "end":
            self.die()

    def reconnect(self):
        """Its connection breaks; it comes back as one that has no workers."""
        if self.alive and not self.stalled:
            self.up.clear()
            self.say(e.AgentLost(self.name))
            self.begin_anew()

    def begin_anew(self):
        self.connected = False
        self.down.clear()
        for worker in self.workers():
            worker.die(0, 9, unheard=True)
        self.say(e.AgentJoined(self.name, f"host-{self.name}", self.slots))

    def dropped(self):
        """The coordinator has closed its connection, after it was lost or because it was silent."""
        if self.stalled:
            self.die()
        elif self.alive and not any(isinstance(event, e.AgentJoined) for event in self.up):
            self.begin_anew()

    def workers(self):
        return [worker for worker in self.job.workers.values() if worker.agent is self and worker.alive]

    def die(self):
        """Its workers die with it, and nobody says a word about them."""
        if self.alive:
            self.alive = False
            self.down.clear()
            for worker in self.workers():
                worker.die(0, 9)
            self.say(e.AgentLost(self.name))


class Job:
    """The machine, its clock, and everybody who belongs to it.

    There are ``steps`` to train; every fourth one is kept for when nobody has a state any more.
    """

    def __init__(self, *, limits, wanted, follow=False, steps=12):
        self.now, self.steps, self.kept = 0.0, steps, 0
        self.state = State(wanted=wanted, limits=limits, follow=follow)
        self.agents, self.workers, self.rounds, self.ends = {}, {}, {}, []
        self.laws = Laws(self)

    # What simulations override: something has been put in a queue, somebody may be able to go on.
    def queued(self, who, way): pass
    def stirred(self, worker): pass

    def stirred_round(self, number):
        for name in self.rounds[number].members:
            if name in self.workers:
                self.stirred(self.workers[name])

    def join(self, name, slots):
        agent = self.agents[name] = Agent(self, name, slots)
        agent.say(e.AgentJoined(name, f"host-{name}", slots))
        return agent

    def spawn(self, name, agent):
        self.workers[name] = Worker(self, name, agent)
        self.stirred(self.workers[name])

    @property
    def over(self):
        return self.state.phase is Phase.OVER

    @property
    def due(self):
        return deadline(self.state)

    def feed(self, event):
        before = self.state
        self.state, actions = step(self.state, event, self.now)
        for action in actions:
            self._carry_out(action)
        self.laws.hold(before, event, actions)

    def _carry_out(self, action):
        if isinstance(action, e.StartWorker):
            self._order(action.agent, "start", action.worker)
        elif isinstance(action, e.FormRound):
            members = tuple(name for name, _ in action.members)
            self.rounds[action.round] = Gathering(members)
            self._tell(members, "seat", action.round)
        elif isinstance(action, e.PauseRound):
            self._tell(action.workers, "pause", self.state.round.number)
        elif isinstance(action, e.CutRound):
            self._tell(action.workers, "cut", action.round)
        elif isinstance(action, e.TellStop):
            self._tell(action.workers, "stop")
        elif isinstance(action, e.Dismiss):
            self._tell(action.workers, "dismiss", action.salvager)
        elif isinstance(action, e.KillWorker):
            self._order(action.agent, "kill", action.worker)
        elif isinstance(action, e.ReleaseAgent):
            self._order(action.agent, "end", None)
        elif isinstance(action, e.DropAgent):
            self.agents[action.agent].dropped()
        elif isinstance(action, e.EndJob):
            self.ends.append(action.cause)

    def _tell(self, names, *message):
        for name in names:
            if name in self.workers and self.workers[name].alive:
                self.workers[name].down.append((message[0], message[1] if len(message) > 1 else None))
                self.queued(self.workers[name], "down")

    def _order(self, name, *order):
        if name in self.agents and self.agents[name].alive and self.agents[name].connected:
            self.agents[name].down.append(order)
            self.queued(self.agents[name], "down")

    def deliver(self, who, way):
        """Deliver the oldest message of a connection."""
        queue = getattr(who, way)
        if not queue or (way == "down" and who.stalled):
            return False
        message = queue.popleft()
        if isinstance(message, e.AgentJoined):
            who.connected = True
        self.feed(message) if way == "up" else who.hear(*message)
        return True
