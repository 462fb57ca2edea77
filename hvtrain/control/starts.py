"""Which start of which job an agent belongs to: by its digest, ``JOB:START``."""

from __future__ import annotations

from hvtrain.control.door import WrongJob
from hvtrain.control.messages import AgentHello
from hvtrain.errors import ProtocolError


def check(hello: AgentHello, digest: str) -> None:
    """Raise ProtocolError for an agent of a former start of the job with this ``digest``, which may be started again, and
    WrongJob for one of another job."""
    if hello.job_digest == digest:
        return
    if hello.job_digest.partition(":")[0] == digest.partition(":")[0]:
        raise ProtocolError(f"the agent on {hello.host} is of a former start of this run")
    raise WrongJob(f"the agent on {hello.host} was started with another job file or other settings than the coordinator; "
                   "start all with the same command")
