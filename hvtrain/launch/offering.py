"""What an agent that has only the token is told: the job as it was settled, if it can take part in it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from hvtrain.control import messages, versions
from hvtrain.errors import UsageError
from hvtrain.launch import hostcheck

if TYPE_CHECKING:
    from hvtrain.launch.joblaunch import JobLaunch


class Offer:
    """Answers agents that ask what the job is. Where they are ``expected``, what they are held against is looked up at the
    start, before somebody changes it; nothing waits for that."""

    def __init__(self, launch: JobLaunch, *, expected: bool):
        self._launch = launch
        self._standard = ThreadPoolExecutor(1).submit(self._look_up) if expected else None

    def _look_up(self) -> tuple[dict[str, str], dict[str, str]]:
        return versions.own(), hostcheck.code(self._launch.module_dir, self._launch.job.run.dir) or {}

    def __call__(self, asked: messages.JobAsk, agent: str, host: str) -> messages.JobGiven:
        """The job, for an ``agent`` of that name on a ``host`` of that name. Raises UsageError where versions differ."""
        launch = self._launch
        ours, code = self._look_up() if self._standard is None else self._standard.result()
        wrong = versions.differences(launch.job.framework, asked.versions, ours)
        if wrong:
            raise UsageError(f"{asked.host} has {', '.join(wrong)}. All hosts of a job must have the same: install there "
                             "what the coordinator's host has")
        return messages.JobGiven(agent=agent, host=host, boot=launch.record(max(1, asked.slots)), job_digest=launch.digest,
                                 cwd=os.getcwd(), code=code)
