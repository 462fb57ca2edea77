"""The custom example as a plain script: ``hvtrain.Trainer(job, task).fit()`` inside a program of your own.

    python examples/custom/train.py [KEY=VALUE ...]
    horovodrun -np 2 python examples/custom/train.py [KEY=VALUE ...]

Use this where training is a part of something larger, such as a notebook or a search over settings. ``hvtrain run``
does more: it starts the workers, keeps their logs, and stops in order when you press Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hvtrain
from hvtrain import config
from task import LongTail  # beside this script


def main() -> None:
    job = config.load(Path(__file__).with_name("config.yaml"), sys.argv[1:])
    task = LongTail(**job.task.args)  # task.target of the file is not looked at: the task is here already
    outcome = hvtrain.Trainer(job, task).fit()
    print(f"{outcome.step} steps; {outcome.summary['metrics']}")


if __name__ == "__main__":
    main()
