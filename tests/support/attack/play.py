"""Playing the whole list against one job."""

from __future__ import annotations

import json
import shutil
import threading
import zlib
from dataclasses import dataclass, field

from hvtrain.control import auth
from hvtrain.engine.info import installed_record
from tests.support.attack import door, files, limits
from tests.support.attack.listening import Listener, Watch, family
from tests.support.attack.peers import Peers
from tests.support.attack.target import Target
from tests.support.runs import Run

WORKERS = 3
HELD_UP = [
    {"kind": "slow", "phase": "forming", "rank": 1, "round": 1, "seconds": "3s"},
    {"kind": "kill", "phase": "backward", "rank": 1, "step": 60},
    {"kind": "slow", "phase": "forming", "rank": 0, "round": 2, "seconds": "1.5s"},
    {"kind": "slow", "phase": "state", "rank": 1, "round": 2, "seconds": "2s"},
]
"""Rounds form in milliseconds; these faults give the attacker time. And a worker is lost, so there is a round 2."""

HELD = """\
import os, time
from tasks import Blobs, Chain, Fault, Ledger

class Hold(Ledger):
    name = "Ledger"

    def on_commit(self, moment):
        super().on_commit(moment)
        deadline = time.monotonic() + 150
        while moment.step == 100 and not os.path.exists("over") and time.monotonic() < deadline:
            time.sleep(0.05)

class Held(Blobs):
    def callbacks(self):
        return [Chain(), Hold(self), Fault(self)]
"""
"""The task of the calm run, but after step 100 it waits until the attack is over."""


@dataclass
class Report:
    """What became of each line, and who listened: {(process, kind, address, what): how often seen}."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)
    listeners: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def table(self) -> str:
        """For people."""
        rows = [("WHERE", "WHAT WAS TRIED", "WHAT HAPPENED"), *self.lines]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        text = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[2]]) for row in rows]
        text += ["", "sockets on which the job's processes listened, and what for:"]
        text += [f"  {process:12} {kind:4} {address:12} {count:3} x  {what}"
                 for (process, kind, address, what), count in sorted(self.listeners.items())]
        return "\n".join([*text, *(f"FAILED  {line}" for line in self.failed)])


def proves() -> bool:
    """Whether the installed engine's connections admit only who proves to be a member."""
    record = installed_record()
    return record is not None and "proof" in record.get("edits", ())


def play(run: Run, *settings: str, tls: bool) -> Report:
    """Start a job in ``run``, attack it, and leave it to its end; the caller judges how that was."""
    report, token = Report(), auth.new_token()
    compressed = zlib.compress(bytes(64 << 20))  # beforehand: a round forms in no time
    (run.base / "held.py").write_text(HELD)
    run.start(*settings, f"launch.tls={str(tls).lower()}", "task.target=held:Held", "elastic.step_timeout=150s",
              workers=WORKERS, faults=HELD_UP, prefix=("prlimit", "--nofile=256"), HVTRAIN_TOKEN=token)
    told = run.until(lambda: (run.dir / "control.json").exists() and (run.dir / "control.json").read_text(), "a door")
    place = json.loads(told)
    target = Target(run.dir, place["host"], place["port"], place["tls"], place["pid"], place["token"],
                    run.base / "exploded")
    peers = Peers(target, proves(), compressed)
    watch = Watch(lambda: family(target.pid), lambda listener: (_count(report, listener, target), peers.meet(listener)))
    slow = threading.Thread(target=_try, args=(report, "door", "slow senders", limits.slow_sender, target))
    try:
        run.until_step(2)
        slow.start()
        _try(report, "files", "secrets left about",
             lambda _: files.secrets(target, lambda: family(target.pid), token), target)
        _try(report, "door", "what an agent that asks is told", lambda _: door.told(target, token), target)
        for where, lines in (("door", door.LINES), ("door", limits.LINES), ("files", files.LINES)):
            for what, attack in lines.items():
                if what != "slow senders" and (tls or attack not in (door.middle, door.no_tls)):
                    _try(report, where, what, attack, target)
        slow.join(30)
        run.until(lambda: len(run.events("round")) == 2, "round 2", 60)
    finally:
        (run.base / "over").touch()
        shutil.rmtree(run.dir / "checkpoints" / files.STEP, ignore_errors=True)
        watch.close()
        peers.close()
    report.failed += peers.failed
    report.lines += [("peers", what, found[0]) for what, found in sorted(peers.told.items())]
    if not proves():
        report.lines.append(("peers", "gloo's ports, the giver of the state", "NOT TRIED: the engine installed here is an "
                             "older one, whose connections prove nothing"))
    return report


def _try(report: Report, where: str, what: str, attack, target: Target) -> None:
    try:
        report.lines.append((where, what, attack(target)))
    except BaseException as error:  # noqa: BLE001 - all lines are to be heard of
        report.failed.append(f"{where}: {what}: {type(error).__name__}: {error}")


def _count(report: Report, listener: Listener, target: Target) -> None:
    worker = listener.process.startswith("hvtrain-w") and listener.process != "hvtrain-warm"
    what = "unknown"
    if listener.kind == "tcp" and listener.pid == target.pid:
        what = "the door: agents, workers, commands; by proof" if listener.port == target.port else \
            "a round's rendezvous, while it forms: members' addresses, by the round's path"
    elif listener.kind == "tcp" and worker:
        what = "gloo and the giver of the state, while a round forms: members, by proof"
    process = "worker" if worker else "coordinator" if listener.pid == target.pid else listener.process
    key = (process, listener.kind, listener.place, what)
    report.listeners[key] = report.listeners.get(key, 0) + 1
