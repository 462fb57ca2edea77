"""Turning an exception into an account of a failure: exit code, one sentence, traceback."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from hvtrain.errors import Diverged, EnvironmentNotReady, ExitCode, HvtrainError, RoundBroken, UserCodeError

MAX_TRACEBACK = 20_000
"""Characters of a traceback that are sent to the coordinator; the log has all of it."""


@dataclass(frozen=True)
class Account:
    exit_code: int
    reason: str
    traceback: str
    lost_peer: bool


def diverged(loss: float, step: int, epoch: int, cursor: int, *, weights_sound: bool) -> Diverged:
    """The error for a ``loss`` that is not finite; ``step`` (from 1) reads ``epoch`` from sample ``cursor`` on."""
    weights = (f"The weights are still those of step {step - 1}" if weights_sound
               else f"The weights after step {step - 1} are not finite either")
    return Diverged(f"the loss of step {step} is {loss}. {weights}. Lower optim.lr, set train.grad_clip, or look at "
                    f"the data: the step reads epoch {epoch} from sample {cursor} on")


def account(error: BaseException) -> Account:
    """What to tell the coordinator about ``error``. Our own errors explain themselves without a traceback."""
    if isinstance(error, HvtrainError):
        text = error.traceback_text if isinstance(error, UserCodeError) else ""
        return Account(int(error.exit_code), str(error), text[-MAX_TRACEBACK:], isinstance(error, RoundBroken))
    if isinstance(error, MemoryError):
        error = EnvironmentNotReady("a worker ran out of memory; lower data.micro_batch or the model's size.")
        return Account(int(error.exit_code), str(error), "", False)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    reason = f"{type(error).__name__}: {error}".strip().rstrip(":")
    return Account(int(ExitCode.USER_CODE), reason, text[-MAX_TRACEBACK:], False)
