"""Every exception hvtrain raises on purpose, and the exit code that each one ends a command with."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Sequence


class ExitCode(IntEnum):
    """Exit codes of the ``hvtrain`` command; ``hvtrain --help`` lists them."""

    DONE = 0
    USER_CODE = 1  # the user's model, data or callback raised
    USAGE = 2  # bad command line or job file
    ENVIRONMENT = 3  # engine, framework, disk or network is not usable
    CHECKPOINT = 4  # the checkpoint that was asked for is missing or damaged
    DIVERGED = 5  # the loss is not finite
    INTERRUPTED = 130  # Ctrl-C
    TERMINATED = 143  # SIGTERM, after a checkpoint
    LOST_WORKERS = 144  # workers died; the job can be restarted
    STALLED = 145  # a worker stopped answering; the job can be restarted

    @property
    def resumable(self) -> bool:
        """True where running the same command again is expected to go on."""
        return self in _RESUMABLE


_RESUMABLE = {
    ExitCode.INTERRUPTED, ExitCode.TERMINATED, ExitCode.LOST_WORKERS, ExitCode.STALLED,
}


class HvtrainError(Exception):
    """Base of all errors. ``str(error)`` is complete: what was expected, what came, what to do."""

    exit_code = ExitCode.USER_CODE


@dataclass(frozen=True)
class Problem:
    """One mistake in a job description and where it stands.

    ``source`` is the file's name, ``"command line"`` or ``"environment"``; ``line`` counts from 1 and is
    None outside files; ``key`` is the dotted path, empty for mistakes of the file as a whole.
    """

    message: str
    source: str
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class ConfigError(HvtrainError, ValueError):
    """A job description has mistakes; ``problems`` holds all of them."""

    exit_code = ExitCode.USAGE

    def __init__(self, problems: Sequence[Problem]):
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 mistake in the job:" if count == 1 else f"{count} mistakes in the job:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class UsageError(HvtrainError, ValueError):
    """A command or a call was used in a way that cannot work."""

    exit_code = ExitCode.USAGE


class EnvironmentNotReady(HvtrainError, RuntimeError):
    """Something outside the job is missing. ``remedy`` is the command that mends it, or empty."""

    exit_code = ExitCode.ENVIRONMENT

    def __init__(self, message: str, remedy: str = ""):
        self.message, self.remedy = message, remedy
        super().__init__(f"{message} Mend it with: {remedy}" if remedy else message)


class CoordinatorGone(EnvironmentNotReady):
    """Nobody listens where the coordinator was: its process has ended."""


class TokenRefused(EnvironmentNotReady):
    """The two ends of a connection do not know the same token."""


class EngineBuildError(EnvironmentNotReady):
    """The Horovod engine could not be built."""


class UserCodeError(HvtrainError):
    """The user's task, model, data or callback raised, or returned what it must not.

    ``traceback_text`` is the formatted traceback of the original exception, empty if there is none.
    """

    exit_code = ExitCode.USER_CODE

    def __init__(self, message: str, traceback_text: str = ""):
        self.traceback_text = traceback_text
        super().__init__(message)


class Uncuttable(UserCodeError, UsageError):
    """The model cannot be cut into the stages that the job asks for; without stages it can be trained as it is."""

    exit_code = ExitCode.USAGE


class CheckpointError(HvtrainError):
    """Base of everything that goes wrong with durable checkpoints."""

    exit_code = ExitCode.CHECKPOINT


class CheckpointMissing(CheckpointError, FileNotFoundError):
    """No checkpoint is where one was asked for."""

    def __str__(self) -> str:  # OSError would format its arguments as errno
        return str(self.args[0]) if self.args else "checkpoint missing"


class CheckpointDamaged(CheckpointError, ValueError):
    """A checkpoint's files do not match its manifest."""


class CheckpointWriteFailed(CheckpointError, OSError):
    """A checkpoint could not be written (disk full, read-only, no permission); older ones are intact."""

    exit_code = ExitCode.ENVIRONMENT

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "checkpoint not written"


class GivenUp(CheckpointError):
    """The job has gone on without this worker, so what it has to save is not kept."""

    exit_code = ExitCode.LOST_WORKERS


class Diverged(HvtrainError, ArithmeticError):
    """The loss of a step is not finite."""

    exit_code = ExitCode.DIVERGED


class StopRequested(HvtrainError):
    """The job was asked to stop; raised inside the loop once every rank has agreed on the step."""

    exit_code = ExitCode.TERMINATED


class ProtocolError(HvtrainError, ValueError):
    """A message between hvtrain's processes is malformed, too large, or not allowed there."""

    exit_code = ExitCode.ENVIRONMENT


class RoundBroken(HvtrainError):
    """A collective operation failed because a member of the round is gone."""

    exit_code = ExitCode.LOST_WORKERS


class RoundPaused(HvtrainError):
    """All members have agreed to form another round at this step; not an error, but a way out of the loop."""

    exit_code = ExitCode.LOST_WORKERS


class Dismissed(HvtrainError):
    """This worker is not needed any more; ``salvage`` asks it to save the last committed step first."""

    exit_code = ExitCode.LOST_WORKERS

    def __init__(self, reason: str, salvage: bool = False):
        self.salvage = salvage
        super().__init__(reason)


class WorkersLost(HvtrainError):
    """Workers died and the job cannot go on without them."""

    exit_code = ExitCode.LOST_WORKERS


class Stalled(HvtrainError):
    """A worker is alive but does not answer."""

    exit_code = ExitCode.STALLED


class Unanswered(RoundBroken, Stalled):
    """A member has not joined a collective operation in time."""

    exit_code = ExitCode.STALLED
