"""A task for tests, with a ledger of the samples of every step and with faults on purpose."""

from __future__ import annotations

import json
import os
import threading
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hvtrain import ArraySource, Callback, Task
from tests.support.happenings import Chain, Fault, claim

if os.environ.get("TEST_START_THREAD"):  # what makes forking unsafe: a thread that importing this module starts
    threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


class Blobs(Task):
    """A little classification problem made from a seed; nothing has to be installed for it.

    Args:
        samples: size of the training set.
        norm: use BatchNorm.
        ledger: directory into which every rank writes the samples of each committed step.
        fault: ``{"kind": kill|raise|nan|stop|exit|hang, "rank": R, "step": K}``, done once: the file
            ``fault.done`` in ``ledger`` records that it reached its victim. With ``"times": N`` it is done N times, by
            whoever has the rank then; ``fault.done`` has a line for each.
        slow: seconds that every step takes longer.
        bad_sample: the loss of any batch with this sample raises.
        late: ``{"after": N, "seconds": S}``: all models but the first N take S seconds to build. Needs ``ledger``.
        width: of the hidden layer.
        huge: the losses of any batch with this sample are so large that half precision overflows.
        feedback: gradients travel by the toy codec that has a state.
    """

    def __init__(self, samples: int = 230, norm: bool = False, ledger: str | None = None,
                 fault: dict | None = None, slow: float = 0.0, late: dict | None = None,
                 bad_sample: int | None = None, width: int = 32, huge: int | None = None, feedback: bool = False):
        self.samples, self.norm, self.ledger, self.fault, self.slow = samples, norm, ledger, fault, slow
        self.late, self.bad_sample, self.width, self.huge, self.feedback = late, bad_sample, width, huge, feedback
        self.seen: list[int] = []
        self.poison = False

    def model(self) -> nn.Module:
        if self.late is not None:
            if not claim(os.path.join(self.ledger, "built"), self.late["after"]):
                time.sleep(self.late["seconds"])
        if self.feedback:
            from hvtrain.adapters.torch import codecs
            from tests.support.feedback import Feedback

            codecs.choose = lambda name, parameters: Feedback()
        norm = [nn.BatchNorm1d(self.width)] if self.norm else []
        return nn.Sequential(nn.Linear(16, self.width), *norm, nn.ReLU(), nn.Linear(self.width, 4))

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
        if torch.is_grad_enabled():
            self.seen.extend(batch[2].tolist())
            if self.bad_sample in self.seen:
                raise ValueError(f"sample {self.bad_sample} is broken")
        losses = F.cross_entropy(outputs.float(), batch[1], reduction="none")
        if self.huge is not None and torch.is_grad_enabled() and self.huge in batch[2]:
            losses = losses * 1e30
        return losses * float("nan") if self.poison else losses

    def metrics(self, outputs, batch):
        return {"accuracy": (outputs.argmax(1) == batch[1]).float()}

    def callbacks(self):
        return [Chain(), Ledger(self), Fault(self)]


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
