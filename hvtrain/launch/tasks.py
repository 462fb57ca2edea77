"""The place that mpirun or srun has given a process. Nobody else reads their variables.

=========  ==========================  ========================  ==============================
\\          Open MPI                    MPICH and its relatives   Slurm (a step of srun)
=========  ==========================  ========================  ==============================
rank       OMPI_COMM_WORLD_RANK        PMI_RANK                  SLURM_PROCID
size       OMPI_COMM_WORLD_SIZE        PMI_SIZE                  SLURM_STEP_NUM_TASKS
on a host  OMPI_COMM_WORLD_LOCAL_RANK  MPI_LOCALRANKID           SLURM_LOCALID
           OMPI_COMM_WORLD_LOCAL_SIZE  MPI_LOCALNRANKS           SLURM_STEP_TASKS_PER_NODE[NODEID]
the job    PMIX_NAMESPACE              (none)                    SLURM_JOB_ID, SLURM_STEP_ID
cores                                                            SLURM_CPUS_PER_TASK (srun -c)
=========  ==========================  ========================  ==============================

A batch script of Slurm has SLURM_PROCID and SLURM_LOCALID too, though no srun has started it; what it does not have is
SLURM_STEP_NUM_TASKS. An mpirun within a batch job starts its own processes by srun, so Open MPI's variables go first.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Mapping

from hvtrain.errors import EnvironmentNotReady


@dataclass(frozen=True)
class Task:
    """``name`` is that of the launcher's job, the same for all of its tasks and for no other job; "" if it has none.

    ``processors``: how many each task has been given; 0 if the launcher does not say.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    name: str = ""
    processors: int = 0

    @property
    def hosts(self) -> int:
        """How many hosts there are, if all have as many tasks."""
        return -(-self.size // self.local_size)


def of_environment(env: Mapping[str, str] | None = None) -> Task | None:
    """This process's place; None if neither mpirun nor srun has started it, or if it is the only one: then it is as if
    nobody had.

    Raises:
        EnvironmentNotReady: the variables do not make sense.
    """
    env = os.environ if env is None else env
    for read in (_open_mpi, _mpich, _slurm):
        try:
            task = read(env)
        except (KeyError, ValueError, IndexError) as error:
            raise EnvironmentNotReady(f"the variables that {read.__name__.strip('_').replace('_', ' ')} sets for its "
                                      f"processes cannot be understood: {error!r}. Unset them if it has not started this "
                                      "process") from None
        if task is not None:
            return task if task.size > 1 else None
    return None


def _open_mpi(env: Mapping[str, str]) -> Task | None:
    if "OMPI_COMM_WORLD_RANK" not in env:
        return None
    rank, size, local_rank, local_size = (int(env[f"OMPI_COMM_WORLD_{name}"])
                                          for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
    name = env.get("PMIX_NAMESPACE") or env.get("OMPI_MCA_ess_base_jobid", "")
    return Task("mpirun", rank, size, local_rank, local_size, f"mpirun {name}" if name else "")


def _mpich(env: Mapping[str, str]) -> Task | None:
    if "PMI_RANK" not in env or "MPI_LOCALRANKID" not in env:
        return None
    return Task("mpiexec", int(env["PMI_RANK"]), int(env["PMI_SIZE"]), int(env["MPI_LOCALRANKID"]),
                int(env["MPI_LOCALNRANKS"]))


def _slurm(env: Mapping[str, str]) -> Task | None:
    if "SLURM_PROCID" not in env or "SLURM_STEP_NUM_TASKS" not in env:
        return None
    size = int(env["SLURM_STEP_NUM_TASKS"])
    local = tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[int(env.get("SLURM_NODEID", "0"))]
    again = env.get("SLURM_RESTART_COUNT", "0")  # a job that is queued again keeps its number
    name = f"srun {env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}.{again}"
    return Task("srun", int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), local, name,
                int(env.get("SLURM_CPUS_PER_TASK", "0")))


def tasks_per_node(text: str) -> list[int]:
    """Slurm's short form: "2(x3),1" is [2, 2, 2, 1]. Raises ValueError."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            raise ValueError(f"{text!r} does not say how many tasks each node has")
        counts += [int(found[1])] * int(found[2] or 1)
    return counts
