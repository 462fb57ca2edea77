"""A worker process: builds the task or runs the script, takes its seat in rounds, trains, and says how it ended."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

from hvtrain import failure, probe, target
from hvtrain.control import messages, noise, process
from hvtrain.control.boot import Boot
from hvtrain.control.remote import RemoteSession
from hvtrain.control.worker_signals import STACKS_SIGNAL
from hvtrain.control.workplace import Workplace
from hvtrain.errors import ExitCode, RoundBroken

log = logging.getLogger(__name__)


def main(boot: Boot, worker: str, rank: int, local_rank: int, round: int, said: bytes = b"") -> int:
    """Be worker ``worker`` until its loop ends; returns the process's exit code. Its output goes to its log.

    ``rank`` is the one that it was started for, ``round`` the first that it can be in; ``said`` is what importing the
    framework has written, with which its log begins.
    """
    process.set_name(f"hvtrain-{worker}")
    redirect_output(boot, rank)
    noise.show(said)
    log.info("worker %s, pid %d", worker, os.getpid())
    if boot.job.hybrid is not None and boot.job.hybrid.stages != 1:  # stages are threads
        process.one_heap()
    session = RemoteSession(boot, worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which asks for a stop
    signal.signal(signal.SIGTERM, lambda number, frame: session.leave())
    place = Workplace(boot, session, worker, rank, local_rank)
    try:
        if boot.faults is not None:
            from hvtrain.control.victim import take_faults

            take_faults(boot, session, rank, round)
        probe.reached("start")
        session.open()
        if boot.job.task.script is not None:
            outcome = place.run_script()
        else:
            outcome = place.work(boot.job, target.build(boot.job.task.target, boot.module_dir, boot.job.task.args))
        session.finish(messages.Finished(step=outcome.step, stopped=outcome.stopped, left=True,
                                         saved_step=place.salvaged_step))
        return int(ExitCode.DONE)
    except BaseException as error:  # noqa: BLE001 - every end of a worker is accounted for
        log.error("rank %d ends: %s", session.rank, error, exc_info=not isinstance(error, RoundBroken))
        account = failure.account(error)
        session.finish(messages.Failed(
            exit_code=account.exit_code, reason=account.reason, traceback=account.traceback,
            step=place.step, lost_peer=account.lost_peer, saved_step=place.salvaged_step))
        return account.exit_code
    finally:
        session.close()


def redirect_output(boot: Boot, rank: int) -> None:
    """Have this process write to the log of the worker that was started for ``rank``, and its stacks on request."""
    path = Path(boot.run_dir) / "logs" / f"rank-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()
    faulthandler.register(STACKS_SIGNAL, all_threads=True, chain=False)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
