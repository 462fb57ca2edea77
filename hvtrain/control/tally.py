"""The arithmetic of a job's time: how much of it went into steps that count.

::

    first step                                    cut     first step again     the end
    |-- step -- step -- step -- (part of a step) --|-- down --|-- step -- step --|
    |<--------------------------------- total ---------------------------------->|

Down is from the loss (the last sign of life, if it was silent; the members' coming back, if they were only asked to
pause) to the next committed step.
Steps that a rollback made necessary again count as wasted with what a step took on average while nothing was wrong.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tally:
    """Times are seconds of one clock; steps are those of the run."""

    began_at: float | None = None  # when the first step of this start was committed
    began_from: int = 0  # the step that this start went on from
    step: int = 0  # committed so far
    down: float = 0.0
    outages: int = 0  # ended ones: each contains the one step that ended it
    repeated: int = 0  # steps that were taken again
    repeated_in_outages: int = 0
    ended_at: float | None = None

    def stepped(self, now: float, *, from_step: int, down_since: float | None, repeated: int) -> None:
        """The first step of a round is committed; ``repeated``: how many steps the round takes again."""
        if self.began_at is None:
            self.began_at, self.began_from = now, from_step
            return  # what a start repeats of an earlier one took its time there
        self.outages += 1
        self.down += now - (now if down_since is None else down_since)
        self.repeated += repeated
        self.repeated_in_outages += repeated > 0

    def end(self, now: float) -> None:
        """The job is over; later calls say nothing new."""
        self.ended_at = now if self.ended_at is None else self.ended_at

    def figures(self, now: float, ongoing: float = 0.0) -> dict[str, float | int | None]:
        """Steps committed since the start, the seconds since the first of them, and what of these was wasted.

        Args:
            ongoing: seconds of an outage that no step has ended.
        """
        if self.began_at is None:
            return {"steps": 0, "seconds": 0.0, "repeated_steps": 0, "seconds_down": 0.0, "goodput": None}
        steps = max(0, self.step - self.began_from)
        total = (now if self.ended_at is None else self.ended_at) - self.began_at
        down = self.down + ongoing
        # The first step was over when the clock started, and those that ended an outage are in its time.
        undisturbed = steps + self.repeated - 1 - self.outages
        per_step = max(0.0, total - down) / undisturbed if undisturbed > 0 else 0.0
        wasted = down + (self.repeated - self.repeated_in_outages) * per_step
        goodput = None if total <= 0 else round(min(1.0, max(0.0, 1.0 - wasted / total)), 4)
        return {"steps": steps, "seconds": round(total, 3), "repeated_steps": self.repeated,
                "seconds_down": round(down, 3), "goodput": goodput}
