"""A stand-in for Slurm's ``srun``: starts tasks on "nodes" and sets the variables that a step of srun sets.

``python -m tests.support.srun TASKS_PER_NODE COMMAND...``; the nodes are in $TEST_NODES, a JSON list of what to put before a
command to run it on each (see :meth:`tests.support.hosts.Hosts.enter`). As with srun, a task that fails leaves the others
alone, SIGTERM goes to all of them, and the exit code is the highest of theirs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys


def main(each: int, command: list[str]) -> int:
    nodes = json.loads(os.environ.get("TEST_NODES", "[[]]"))
    batch = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": str(each * len(nodes)), "SLURM_NNODES": str(len(nodes))}
    step = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(each * len(nodes)), "SLURM_STEP_NUM_NODES": str(len(nodes)),
            "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{len(nodes)})"}
    tasks = []
    for number, node in enumerate(nodes):
        for local in range(each):
            place = {"SLURM_PROCID": str(number * each + local), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(number)}
            tasks.append(subprocess.Popen([*node, *command], env={**os.environ, **batch, **step, **place}))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _: [task.send_signal(caught) for task in tasks])
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
