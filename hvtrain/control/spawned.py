"""Entry of a worker that was started as a fresh interpreter: ``python -m hvtrain.control.spawned PARENT_PID``."""

from __future__ import annotations

import json
import os
import sys

from hvtrain.control import process


def main() -> None:
    """Read the boot record from standard input and become that worker."""
    process.die_with_parent(int(sys.argv[1]))
    record = json.load(sys.stdin)
    from hvtrain.adapters import import_framework
    from hvtrain.control.boot import Boot
    from hvtrain.control.worker import main as work
    from hvtrain.control.worker import redirect_output

    boot = Boot.from_json(record["boot"])
    redirect_output(boot, record["place"][0])  # before the framework is imported, which has its say too
    import_framework(boot.job.framework)
    code = work(boot, record["worker"], *record["place"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
