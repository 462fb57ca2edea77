"""Workers die while steps are being traced, and while the traces are being gathered."""

from __future__ import annotations

import json

import pytest

from tests.support import traces
from tests.support.whole_job import STEPS, WHOLE

DEADLY = """
import os, signal
from hvtrain.timeline import Timeline
from tasks import Blobs as Plain, claim

class Blobs(Plain):
    def __init__(self, where, **args):
        super().__init__(**args)
        real = getattr(Timeline, where)

        def deadly(self, step, *args, **more):
            if where == "_write":  # nobody has heard of the file yet
                real(self, step, *args, **more)
            if where == "_write" or (step == 12 and args[0].rank == 1):
                if claim("struck", 1):
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(self, step, *args, **more)

        setattr(Timeline, where, deadly)
"""


def steps(run) -> list[list[str]]:
    """Which steps each rank has traced."""
    found = traces.checked(json.loads((run.dir / "timeline.json").read_text()))
    return [[one.name for one in rows["steps"]] for rows in found.values()]


def complete(names: list[str]) -> list[int]:
    """The steps among ``names`` that were not broken off."""
    return [int(name.split()[1]) for name in names if "broken" not in name]


@pytest.mark.soak
def test_kills_within_the_range_leave_a_trace_and_not_a_bit_is_different(run, calm):
    run.run(*WHOLE, "log.timeline=15-40", workers=3, faults=[
        {"kind": "kill", "phase": "bucket", "rank": 0, "step": 20},
        {"kind": "kill", "phase": "reduced", "rank": 2, "step": 30},
        {"kind": "kill", "phase": "evaluation", "rank": 1, "step": 40}])  # which follows the range's last step
    run.struck()
    assert run.ending() == calm(3)
    assert run.exact(STEPS).repeated == 0
    first, second, third = steps(run)
    # The replacement came to take step 20; or 21, where the bucket was with the others before its sender died.
    assert complete(first) in (list(range(20, 41)), list(range(21, 41)))
    assert complete(third) in (list(range(30, 41)), list(range(31, 41)))
    assert not second
    assert [name for name in first if "broken" in name] in (["step 30, broken off"], ["step 31, broken off"])
    assert run.events("timeline")[-1]["step"] == 40 and run.gone()


@pytest.mark.soak
@pytest.mark.parametrize("where", ["settle", "_write"])
def test_a_kill_within_the_gathering(run, calm, where):
    (run.base / "deadly.py").write_text(DEADLY)
    run.run(*WHOLE, "log.timeline=10-12", "task.target=deadly:Blobs", f"task.args.where={where}", workers=3)
    assert len(run.events("worker_lost")) == 1
    assert run.ending() == calm(3)
    victim = 1 if where == "settle" else 0
    assert [complete(names) for names in steps(run)] == [[] if rank == victim else [10, 11, 12] for rank in range(3)]
    assert len(run.events("timeline")) >= 1 and run.gone()
