"""Tasks for tests: the digits MLP, with a ledger of the samples of every step and with faults on purpose."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Callback, Task

if os.environ.get("TEST_START_THREAD"):  # what makes forking unsafe: a thread that importing this module starts
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


class Blobs(Task):
    """A little classification problem made from a seed; nothing has to be installed for it.

    Args:
        samples: size of the training set.
        norm: use BatchNorm.
        ledger: directory into which every rank writes the samples of each committed step.
        fault: ``{"kind": kill|raise|nan|stop|exit|hang, "rank": R, "step": K}``, done once: the file
            ``fault.done`` in ``ledger`` records that it reached its victim.
        slow: seconds that every step takes longer.
    """

    def __init__(self, samples: int = 230, norm: bool = False, ledger: str | None = None,
                 fault: dict | None = None, slow: float = 0.0):
        self.samples, self.norm, self.ledger, self.fault, self.slow = samples, norm, ledger, fault, slow
        self.seen: list[int] = []
        self.poison = False

    def model(self) -> nn.Module:
        norm = [nn.BatchNorm1d(32)] if self.norm else []
        return nn.Sequential(nn.Linear(16, 32), *norm, nn.ReLU(), nn.Linear(32, 4))

    def data(self, split: str):
        rng = np.random.default_rng(7 if split == "train" else 8)
        count = self.samples if split == "train" else 101
        labels = rng.integers(0, 4, count)
        points = rng.normal(size=(count, 16)).astype(np.float32)
        points[np.arange(count), labels] += 3
        return ArraySource(torch.from_numpy(points), torch.from_numpy(labels), torch.arange(count))

    def labels(self):
        return self.data("train").arrays[1]

    def loss(self, outputs, batch):
        if self.seen is not None and torch.is_grad_enabled():
            self.seen.extend(batch[2].tolist())
        losses = F.cross_entropy(outputs, batch[1], reduction="none")
        return losses * float("nan") if self.poison else losses

    def metrics(self, outputs, batch):
        return {"accuracy": (outputs.argmax(1) == batch[1]).float()}

    def callbacks(self):
        return [Ledger(self), Fault(self)]


class Ledger(Callback):
    """Writes one line per committed step: which samples this rank has used."""

    def __init__(self, task: Blobs):
        self.task = task

    def on_commit(self, moment):
        if self.task.ledger:
            with open(os.path.join(self.task.ledger, f"ledger-{os.getpid()}.jsonl"), "a") as file:
                file.write(json.dumps({"step": moment.step, "rank": moment.rank, "size": moment.size,
                                       "samples": self.task.seen}) + "\n")
        self.task.seen = []
        time.sleep(self.task.slow)

    def state(self):
        return {"seen": True}


class Fault(Callback):
    """Does what the task's ``fault`` says, once, at the end of its step."""

    def __init__(self, task: Blobs):
        self.task = task

    def on_step_end(self, moment):
        fault = self.task.fault
        if fault is None or moment.rank != fault["rank"] or moment.step != fault["step"]:
            return
        mark = os.path.join(self.task.ledger, "fault.done")
        if os.path.exists(mark):
            return
        with open(mark, "w") as file:
            file.write(str(os.getpid()))
        kind = fault["kind"]
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif kind == "hang":
            time.sleep(3600)
        elif kind == "exit":
            os._exit(17)
        elif kind == "raise":
            raise ValueError("a mistake in the user's code")
        elif kind == "nan":
            self.task.poison = True
