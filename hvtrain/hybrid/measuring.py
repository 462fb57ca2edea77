"""Measures a job's model in a process of its own, so that whoever asks need not import a framework.

``python -m hvtrain.hybrid.measuring ANSWER PARENT_PID READY GO``: the request comes on standard input as one JSON object, the
answer goes to the descriptor ANSWER: a measurement, or why there is none. Before it measures, the process writes a byte to
READY and waits for one from GO: so several can do it at the same time (:mod:`hvtrain.launch.trials`).
"""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import hvtrain
from hvtrain import failure, target
from hvtrain.config import Job
from hvtrain.control import process
from hvtrain.engine.machine import memory_free
from hvtrain.errors import EnvironmentNotReady, Uncuttable, UsageError, UserCodeError
from hvtrain.hybrid.costs import ModelCosts
from hvtrain.hybrid.measurement import Measurement, digest
from hvtrain.hybrid.speeds import Speeds

Gate = Callable[[], None]
Found = tuple[tuple[ModelCosts, ...], int, "int | None", str]


ROOM = 0.5
"""The part of the free memory that the activations of a measurement may take."""

BATCH_ROOM = 0.1
"""The part that its samples may take; collating holds them twice, and so may a GPU, which has less."""


@dataclass(frozen=True)
class Request:
    """Measure ``job``'s model, whose code is in ``module_dir``, with micro-batches of ``sizes`` samples (ascending), as far as
    memory and time allow: on a GPU if there is one and ``gpu`` is true, else on the processor with so many ``threads``,
    where ``at_once`` processes do so at the same time. A model that cannot be cut is measured as one layer, unless it
    ``must_be_cut``. The job's ``hybrid`` section is not looked at."""

    job: Job
    module_dir: str
    sizes: tuple[int, ...]
    threads: int = 1
    gpu: bool = True
    at_once: int = 1
    must_be_cut: bool = False

    def to_json(self) -> dict[str, Any]:
        job = {**self.job.model_dump(mode="json"), "hybrid": None}
        return {"job": job, "module_dir": self.module_dir, "sizes": self.sizes, "threads": self.threads, "gpu": self.gpu,
                "at_once": self.at_once, "must_be_cut": self.must_be_cut}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Request:
        return cls(**{**values, "job": Job.model_validate(values["job"]), "sizes": tuple(values["sizes"])})


def measure(request: Request, gate: Gate = lambda: None) -> Measurement:
    """Build the task and its model here, and measure. Raises what user code raises, Uncuttable if it must be cut and cannot.

    ``gate`` is called before what all that measure at once are to do at the same time.
    """
    from hvtrain import adapters

    job = request.job
    if job.task.target is None:
        raise UsageError(f"a measurement takes a task (task.target); {job.task.script} is a script")
    adapters.import_framework(job.framework)
    task = target.build(job.task.target, request.module_dir, job.task.args)
    batch, count = _example(job, task, request.sizes[0])
    fit = [size for size in request.sizes if size * _size(batch) / count <= BATCH_ROOM * memory_free()]
    if fit and fit[-1] > count:
        batch, count = _example(job, task, fit[-1])
    # A small data set may have fewer samples.
    request = replace(request, sizes=tuple(sorted({min(size, count) for size in request.sizes})))
    measure_with = _torch if job.framework == "torch" else _keras
    found, gpus, memory, whole = measure_with(request, task, batch, count, gate)
    if job.train.ema is not None:  # the averages are as large as the weights
        found = tuple(replace(costs, state=costs.state + 1) for costs in found)
    speeds = Speeds(found, always_recomputes=job.framework != "torch")  # hvtrain.hybrid.torch.pipeline
    return Measurement(speeds, gpus=gpus, memory=memory, code={path: digest(path) for path in _code()}, whole=whole)


def _size(batch: Any) -> int:
    """Bytes of all arrays in a batch."""
    if isinstance(batch, (dict, list, tuple)):
        return sum(map(_size, batch.values() if isinstance(batch, dict) else batch))
    return int(getattr(batch, "nbytes", 0))


def _example(job: Job, task: Any, samples: int) -> tuple[Any, int]:
    from hvtrain.data.loader import Loader
    from hvtrain.data.sources import as_source

    source = as_source(task.data("train"))
    with Loader(source, task.collate, 0, 1, job.run.seed) as loader:
        return loader.example(max(1, min(samples, len(source))))


def _torch(request: Request, task: Any, batch: Any, count: int, gate: Gate) -> Found:
    """The costs by size, the number of GPUs, bytes of the smallest, and why the model is one layer if it cannot be cut."""
    import torch

    from hvtrain.adapters.torch import optimizers
    from hvtrain.adapters.torch.precision import Precision
    from hvtrain.hybrid.torch.profile import measure as measure_model

    job = request.job
    gpus = torch.cuda.device_count() if request.gpu else 0
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    memory = min((torch.cuda.get_device_properties(number).total_memory for number in range(gpus)), default=None)
    torch.set_num_threads(request.threads)
    torch.manual_seed(job.run.seed)
    model = task.model()
    if not isinstance(model, torch.nn.Module):
        raise UserCodeError(f"Task.model gave a {type(model).__name__}; it must give a torch.nn.Module")
    model.to(device).train()
    optimizers.freeze(model, job.optim.groups)
    optimizer = optimizers.build(task, model, job.optim)
    precision = Precision(job.train.precision, device, job.train.loss_scale)
    free = torch.cuda.mem_get_info(device)[0] if gpus else memory_free() / request.at_once
    measured = partial(measure_model, model, task, batch, count, device, optimizer, context=precision.context,
                       sizes=request.sizes, room=ROOM * free, gate=gate)
    try:
        return measured(), gpus, memory, ""
    except UserCodeError as error:  # it can be trained as it is all the same, and it may be what data parallelism needs
        if request.must_be_cut:
            raise Uncuttable(str(error)) from error
        return measured(uncut=True), gpus, memory, str(error)


def _keras(request: Request, task: Any, batch: Any, count: int, gate: Gate) -> Found:
    """As :func:`_torch`; TensorFlow does not tell how much memory a GPU has."""
    import tensorflow as tf

    from hvtrain.adapters.keras.adapter import KerasAdapter
    from hvtrain.hybrid.keras.profile import measure as measure_model

    # As a worker builds it: from its seed, in its precision, with its frozen variables and its optimizer.
    whole = KerasAdapter(request.job, task, threads=request.threads)
    whole.build()
    whole.warm_up(lambda: _example(request.job, task, request.sizes[0]))
    gpus = len(tf.config.list_physical_devices("GPU")) if request.gpu else 0
    measured = partial(measure_model, whole.model, task, batch, count, "/GPU:0" if gpus else "/CPU:0", whole.optimizer,
                       sizes=request.sizes, room=ROOM * memory_free() / request.at_once, gate=gate)
    try:
        return measured(), gpus, None, ""
    except Uncuttable as error:
        if request.must_be_cut:
            raise
        return measured(uncut=True), gpus, None, str(error)


def _code() -> list[str]:
    """The files that the user's modules have been imported from: all but what is installed, and hvtrain."""
    installed = {Path(path).resolve() for path in sysconfig.get_paths().values()} | {Path(hvtrain.__file__).resolve().parent}
    files = {Path(name).resolve() for module in list(sys.modules.values())
             if isinstance(name := getattr(module, "__file__", None), str) and name.endswith(".py")}
    return sorted(str(file) for file in files
                  if file.is_file() and not installed & set(file.parents) and "site-packages" not in file.parts)


def _pass(ready: int, go: int) -> None:
    """Wait until all that measure at once are here."""
    os.write(ready, b".")
    if not os.read(go, 1):
        raise EnvironmentNotReady("another process that was measuring at the same time has ended")


def main() -> None:
    """Answer one request."""
    answer_to, parent, ready, go = map(int, sys.argv[1:5])
    process.die_with_parent(parent)
    process.set_name("hvtrain-measure")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        answer = {"measurement": measure(Request.from_json(json.load(sys.stdin)), partial(_pass, ready, go)).to_json()}
    except BaseException as error:  # noqa: BLE001 - whatever user code raises is told to who has asked
        account = failure.account(error)
        answer = {"exit_code": account.exit_code, "reason": account.reason, "traceback": account.traceback,
                  "uncuttable": isinstance(error, Uncuttable)}
    with os.fdopen(answer_to, "w") as out:
        json.dump(answer, out)
    sys.stdout.flush()
    os._exit(0)  # tearing a framework down takes half a second and serves nobody


if __name__ == "__main__":
    main()
