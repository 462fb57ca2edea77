"""``python -m tests.support.attack [plain]``: play the list, and print the table."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support.attack.play import play
from tests.support.runs import Run

SETTINGS = ("train.epochs=null", "train.steps=120", "log.ledger=true", "elastic.replace_timeout=60s")


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory))
        (run.base / "ledger").mkdir()
        try:
            report = play(run, *SETTINGS, tls="plain" not in sys.argv)
            code = run.wait().returncode
        finally:
            run.kill_all()
        print(report.table())
        print(f"\nthe job ended with exit code {code}; ledger: {run.exact(120).verdict}")
        calm = Run(Path(directory), "calm")
        calm.run(*SETTINGS, workers=3)
        same = run.ending() == calm.ending()
        print("the weights are", "bit for bit those of a run that was left alone" if same else "NOT those of a calm run")
    return int(bool(report.failed) or code != 0 or not same)


if __name__ == "__main__":
    sys.exit(main())
