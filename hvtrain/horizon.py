"""How far a training goes, and what the schedule says at each of its steps, whatever the number of workers.

With ``elastic.on_resize: keep_local_batch`` the global batch follows the number of workers. Then the schedule is a
function of the samples used so far, counted in batches of the size that the job was written for.
"""

from __future__ import annotations

from hvtrain import schedules
from hvtrain.config import Job
from hvtrain.data.sampler import GlobalSampler
from hvtrain.progress import Progress

_POWER = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


class Horizon:
    """The end of a training and its learning rates. ``total`` is the number of steps at the job's own batch size.

    Args:
        sampler: draws the job's own global batches.
        workers: how many workers those are meant for.
    """

    def __init__(self, job: Job, sampler: GlobalSampler, workers: int):
        self._job, self._reference, self._workers = job, sampler, workers
        self._scales = job.elastic.on_resize == "keep_local_batch"
        self._epochs = job.train.epochs or 1
        self.per_epoch = sampler.steps_per_epoch
        self.total = job.train.steps if job.train.steps is not None else self._epochs * self.per_epoch
        self._schedule = schedules.make(job.optim.schedule, self.total, self.per_epoch)
        self.sampler, self._rate = sampler, 1.0

    def resize(self, size: int) -> None:
        """There are ``size`` workers from now on."""
        if self._scales:
            batch = self._reference.global_batch * size // self._workers
            self.sampler = self._reference.with_batch(max(1, min(batch, self._reference.length)))
            self._rate = (self.sampler.global_batch / self._reference.global_batch) ** _POWER[self._job.elastic.lr_scaling]

    def left(self, progress: Progress) -> int:
        """Steps that are left from ``progress`` on, at the present batch size."""
        if progress.ended:
            return 0
        if not self._scales or self._job.train.steps is not None:
            return max(0, self.total - progress.step)
        position = self.sampler.next(progress.position, 0)
        if position.epoch >= self._epochs:
            return 0
        rest = self.sampler.plan_outline(position.epoch).steps_left(position.cursor)
        return rest + (self._epochs - position.epoch - 1) * self.sampler.steps_per_epoch

    def factor(self, progress: Progress) -> float:
        """What every base learning rate is multiplied by in the step that ``progress`` leads to."""
        step = progress.step
        if self._scales and self._job.train.steps is None:
            samples = progress.position.epoch * self._reference.length + progress.position.cursor
            step = min(self.total - 1, samples * self.per_epoch // self._reference.length)
        return self._schedule(step) * self._rate
