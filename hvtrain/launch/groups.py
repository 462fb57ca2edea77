"""Slots in groups: where each worker has several devices, one process of a group is its agent, the others stand by.

::

    horovodrun -np 8 -H a:4,b:4, hybrid.stages: 2       host a  0 1 2 3     host b  0 1 2 3      local ranks
                                                                A . A .             A . A .      A: agent with one slot

Who stands by has no worker, but is connected like the others, and ends with the job.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvtrain.errors import UsageError


@dataclass(frozen=True)
class Groups:
    """Groups of ``stages`` slots on a host."""

    stages: int = 1

    def leads(self, local_rank: int, local_size: int) -> bool:
        """Whether this process is its group's agent; the last processes of a host may be too few for a group."""
        return local_rank % self.stages == 0 and local_rank + self.stages <= local_size

    def count(self, slots: int) -> int:
        """Workers that so many slots are good for."""
        return slots // self.stages

    def check(self, *, host: str, slots: int, hosts: int, command: str, launcher: str = "horovodrun") -> None:
        """Raise UsageError where a host's ``slots`` do not come out even; ``command`` is what the ``launcher`` was to run."""
        if slots % self.stages == 0:
            return
        even = max(self.stages, slots - slots % self.stages)
        line = f"{launcher} -n {even * hosts}"
        if launcher == "horovodrun":
            line = f"horovodrun -np {even}" if hosts == 1 else f"horovodrun -np {even * hosts} -H {host}:{even},..."
        raise UsageError(f"with {self.stages} stages each worker takes {self.stages} slots of its host, but {launcher} has "
                         f"started {slots} {'process' if slots == 1 else 'processes'} on {host}. Start a multiple of "
                         f"{self.stages} on every host:  {line} {command}")
