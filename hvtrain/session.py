"""What the training loop needs from outside: a place among the ranks, and somebody to tell."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ContextManager, Mapping, Protocol

from hvtrain.engine.world import SoloWorld, World


class Cuttable(Protocol):
    def cut(self) -> Any:
        """Break whoever waits in this out of it; called from another thread."""


class Session(Protocol):
    """A worker's tie to the rest of the job. The loop knows no sockets and no processes beside this.

    ::

        enter --> formed --> at, tick ... --> conclude --> True: over
          ^                     | RoundBroken, RoundPaused     | False
          +---------------------+------------------------------+
    """

    round: int
    rank: int  # in that round
    first: bool  # no round of this job has come as far as to train before
    job_id: str  # what the checkpoints' fence calls this start of the run, "" where nobody else can be there
    elastic: bool
    fresh: bool
    address: str
    token: str

    def enter(self, outline: Mapping[str, Any], step: int, reason: str) -> World:
        """Say that this worker can take a seat, and wait until a round is formed with it.

        Args:
            outline: describes the run.
            step: committed steps of the state that it holds, -1 if it holds none.
            reason: why it left the round before, for the log; empty if there was none.

        Raises:
            Dismissed: there is no seat for it any more.
            RoundBroken: the round broke while it was formed, and there will be no other (not ``elastic``).
        """

    def formed(self, step: int, *, source: str, known: int, received: int, seconds: Mapping[str, float]) -> None:
        """This worker holds the state that its round goes on from: ``source`` says where that came from, ``known``
        is the highest step known to have been committed, ``received`` counts bytes of state."""

    def breakable(self, what: Cuttable) -> ContextManager[Any]:
        """Within this context ``what`` is cut when the round breaks."""

    def at(self, step: int) -> None:
        """``step`` steps are complete."""

    def tick(self) -> None:
        """Something has got done: a micro-batch, a batch of an evaluation."""

    def await_lease(self) -> None:
        """Return at once while this worker is known to belong to the job; else wait until it is again. To be called
        before a step is applied. Raises RoundBroken if the round is over meanwhile."""

    def pause_asked(self) -> bool:
        """Whether this round is to end at the next step boundary, for another one."""

    def conclude(self, step: int, stopped: bool, summary: Mapping[str, Any]) -> bool:
        """The loop has ended as it should. False if the others cannot end and this worker must come back."""

    def stop_signal(self) -> int:
        """The signal by which a stop was asked for, 0 if none was."""

    def report(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Measured values (``kind`` "train" or "eval"), for metrics.jsonl and the console."""

    def event(self, name: str, step: int, **values: Any) -> None:
        """Something that happened, for events.jsonl."""

    def salvage(self) -> bool:
        """After the job's end by another's failure: whether it falls to this worker to save the last step."""


class QuietSession:
    """A session of one process that tells nobody; also the base of those that tell somebody."""

    round, rank = 1, 0
    elastic = False
    fresh = first = True
    address = token = job_id = ""

    def enter(self, outline: Mapping[str, Any], step: int, reason: str) -> World:
        return SoloWorld()

    def formed(self, step: int, *, source: str, known: int, received: int, seconds: Mapping[str, float]) -> None:
        pass

    def breakable(self, what: Cuttable) -> ContextManager[Any]:
        return nullcontext(what)

    def at(self, step: int) -> None:
        pass

    def tick(self) -> None:
        pass

    def await_lease(self) -> None:
        pass

    def pause_asked(self) -> bool:
        return False

    def conclude(self, step: int, stopped: bool, summary: Mapping[str, Any]) -> bool:
        return True

    def stop_signal(self) -> int:
        return 0

    def report(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        pass

    def event(self, name: str, step: int, **values: Any) -> None:
        pass

    def salvage(self) -> bool:
        return True
