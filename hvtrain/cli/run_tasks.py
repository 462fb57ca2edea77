"""``hvtrain run`` as one of the tasks that mpirun or srun has started."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from typing import Any, Callable


def refuse(launcher: str, **given: Any) -> None:
    """Raise UsageError for options that were ``given`` though the ``launcher`` has decided."""
    from hvtrain.errors import UsageError

    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{launcher} has started these processes, each of which is a slot; leave hvtrain's {option} out")


def start(path: str, task: Any, load: Callable[[list[str]], tuple[Any, Any]], *, framework: str, workers: int | None,
          plan: str | None) -> int:
    """Be this ``task`` of the job of the file (or script) ``path``; returns the exit code. ``load`` reads the job, with
    further overrides."""
    from hvtrain.checkpoint.memory import SharedSnapshots
    from hvtrain.control import warmstart

    memory = SharedSnapshots.create()
    warm = warmstart.start(framework, memory.fds)  # first of all: it imports the framework while this process gets ready
    try:
        from hvtrain.chaos.loading import load as load_plan
        from hvtrain.launch import taskrun
        from hvtrain.launch.joblaunch import command_line, prepare
        from hvtrain.launch.settling import stages_of

        refuse(task.launcher, **{"-np": None if workers == task.size else workers})
        job, given = load(["launch.workers=null"])
        count = max(1, task.size // (stages_of(job) or 1))
        interface, address = _listening(task)
        command = f"{task.launcher} -n {task.size} {command_line(sys.argv[1:])}"
        launch = prepare(job, path, command, interface=interface, given=given,
                         faults=load_plan(plan, workers=count) if plan is not None else None)
        return asyncio.run(taskrun.run(replace(launch, address=address), task, warm, memory))
    except BaseException:
        warm.process.kill()
        raise


def _listening(task: Any) -> tuple[str, str | None]:
    """Interface, and address if that is certain, that the coordinator is to listen at."""
    from hvtrain.launch import network, noticefile

    stated = os.environ.get(noticefile.VARIABLE)
    if stated is not None and task.rank == 0:
        return network.own(noticefile.parse(stated, f"${noticefile.VARIABLE}")[0])
    return (network.outward() if task.hosts > 1 else network.loopback()), None
