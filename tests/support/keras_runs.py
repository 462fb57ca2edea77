"""Jobs as in runs.py, trained by Keras."""

from __future__ import annotations

from pathlib import Path

from tests.support.runs import JOB, ROOT, Run


class KerasRun(Run):
    """A job in ``directory`` whose task is that of keras_tasks.py."""

    def __init__(self, directory: Path, name: str = "run"):
        super().__init__(directory, name)
        (directory / "tasks.py").write_text((ROOT / "tests" / "support" / "keras_tasks.py").read_text())
        (directory / "job.yaml").write_text(f"framework: keras\n{JOB}")
