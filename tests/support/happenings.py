"""What tasks for tests have in common, whatever the framework: a state that must not break, and faults on purpose."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import time
from typing import Any

from hvtrain import Callback


class Chain(Callback):
    """A state that is right only if it has seen every step once and in order, on whatever rank."""

    def __init__(self):
        self.steps, self.digest = 0, ""

    def on_step_end(self, moment):
        self.steps += 1
        link = f"{self.digest} {moment.step} {moment.metrics['loss']!r} {moment.metrics['lr']!r}"
        self.digest = hashlib.sha256(link.encode()).hexdigest()

    def state(self):
        return {"steps": self.steps, "digest": self.digest}

    def load_state(self, state):
        self.steps, self.digest = state["steps"], state["digest"]


class Fault(Callback):
    """Does what the ``fault`` of ``task`` says, at the end of its step; see ``Blobs`` in tasks.py."""

    def __init__(self, task: Any):
        self.task = task

    def on_step_end(self, moment):
        fault = self.task.fault
        if fault is None or moment.rank != fault["rank"] or moment.step != fault["step"]:
            return
        if not claim(os.path.join(self.task.ledger, "fault.done"), fault.get("times", 1)):
            return
        kind = fault["kind"]
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "hang":
            sleep_for_ever()
        elif kind == "exit":
            os._exit(17)
        elif kind == "raise":
            raise ValueError("a mistake in the user's code")
        elif kind == "nan":
            self.task.poison = True


def sleep_for_ever() -> None:
    """Its name is to be found in the stacks of who hangs here."""
    time.sleep(3600)


def claim(path: str, most: int) -> bool:
    """Enter this process in a file of at most ``most`` processes; False if it is full."""
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if len(file.read().splitlines()) >= most:
            return False
        file.write(f"{os.getpid()}\n")
    return True
