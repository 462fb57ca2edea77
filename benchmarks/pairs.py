"""Starting the two ranks of a contestant, one in each namespace, and reading what they found."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

from contestants import HERE, ContestantFailed, Run
from netns import ADDRESSES, INTERFACE, Cable
from stopwatch import RESULT

from hvtrain.control.warmstart import KEEP_MEMORY, SHARE_CORES

LAUNCHERS = ("HOROVOD_", "HVTRAIN_", "TORCHELASTIC_", "PET_", "MALLOC_", "GLOO_")
"""Beginnings of variables that would change what a contestant does."""

_ports = itertools.count(29500)


@dataclass(frozen=True)
class Pair:
    """A contestant: ``kind`` and ``codec`` are those of peers/networked.py, ``ranks`` 1 or 2."""

    name: str
    kind: str
    codec: str = "none"
    ranks: int = 2

    @property
    def base(self) -> str:
        """Whose computation alone this one's floor stands on: hvtrain's own, or that of a plain script."""
        return "hvtrain alone" if self.kind == "hvtrain" else "alone"


FIELD = (
    Pair("alone", "alone", ranks=1), Pair("hvtrain alone", "hvtrain", ranks=1),
    *(Pair(f"hvtrain {codec}", "hvtrain", codec) for codec in ("none", "fp16", "bf16", "int8")),
    Pair("horovod", "horovod"),
    Pair("ddp", "ddp"), *(Pair(f"ddp {hook}", "ddp", hook) for hook in ("fp16", "bf16", "powersgd")),
)


def run(pair: Pair, cable: Cable, arguments: Sequence[str], *, limit: float = 600) -> Run:
    """Run ``pair`` once; ``arguments`` are the workload and options of peers/networked.py.

    Raises:
        ContestantFailed: a rank ended with an error, or they took longer than ``limit`` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="hvtrain-bench-") as name, contextlib.ExitStack() as stack:
        folder, load = Path(name), os.getloadavg()[0]
        port = 0
        if pair.ranks > 1:
            port = next(_ports) if pair.kind == "ddp" else stack.enter_context(_store(cable))
        command = [sys.executable, str(HERE / "peers" / "networked.py"), pair.kind, *arguments, "--codec", pair.codec]
        launched = time.time()
        processes = []
        for rank in range(pair.ranks):
            output = stack.enter_context(open(folder / f"output.{rank}", "wb"))
            processes.append(subprocess.Popen(
                cable.inside(rank, command), env=_environment(pair, rank, port, folder), cwd=folder,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True))
            stack.callback(_end, processes[-1])
        why = _wait(processes, limit)
        wall = time.time() - launched
        result = folder / "result.jsonl"
        findings = [json.loads(line) for line in result.read_text().splitlines()] if result.exists() else []
        finished = sum(finding["event"] == "steady" for finding in findings)
        if why or finished != pair.ranks:
            tails = "\n".join(f"--- rank {rank}\n{(folder / f'output.{rank}').read_text(errors='replace')[-3000:]}"
                              for rank in range(pair.ranks))
            raise ContestantFailed(f"{pair.name}: {why or 'ended'}, {finished} of {pair.ranks} ranks finished:\n"
                                   f"  {' '.join(command)}\n{tails}")
        return Run(pair.name, launched, wall, load, findings)


def bandwidth(cable: Cable, mb: float) -> dict[str, float]:
    """Bytes per second of a plain TCP transfer of ``mb`` MB: one way, and each way (the slower) when both are used."""
    one, = _transfers(cable, mb, [(0, 1)])
    return {"one_way": one, "both_ways": min(_transfers(cable, mb, [(0, 1), (1, 0)]))}


def _transfers(cable: Cable, mb: float, ways: Sequence[tuple[int, int]]) -> list[float]:
    script = [sys.executable, str(HERE / "peers" / "transfer.py")]
    with contextlib.ExitStack() as stack:
        receivers = []
        for sender, receiver in ways:
            where = [ADDRESSES[receiver], str(next(_ports))]
            receivers.append(subprocess.Popen(cable.inside(receiver, [*script, "receive", *where]),
                                              stdout=subprocess.PIPE, text=True, start_new_session=True))
            stack.callback(_end, receivers[-1])
            stack.callback(_end, subprocess.Popen(cable.inside(sender, [*script, "send", *where, str(mb)]),
                                                  start_new_session=True))
        found = [json.loads(process.communicate(timeout=600)[0] or "null") for process in receivers]
    if None in found:
        raise ContestantFailed("the transfer that measures the bandwidth did not come to its end")
    return [each["bytes"] / each["seconds"] for each in found]


@contextlib.contextmanager
def _store(cable: Cable) -> Iterator[int]:
    """Horovod's rendezvous in rank 0's namespace, for one run: its port."""
    process = subprocess.Popen(cable.inside(0, [sys.executable, str(HERE / "peers" / "store.py"), ADDRESSES[0]]),
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_clean(),
                               start_new_session=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port:
            raise ContestantFailed("Horovod's rendezvous did not start")
        yield int(port)
    finally:
        _end(process)


def _environment(pair: Pair, rank: int, port: int, folder: Path) -> dict[str, str]:
    """What a launcher would tell the rank, were the namespaces two hosts."""
    env = _clean() | {RESULT: str(folder / "result.jsonl")}
    if pair.kind == "hvtrain":  # as the workers of `hvtrain run` have it
        env |= {**KEEP_MEMORY, **SHARE_CORES}
    if pair.ranks == 1:
        return env
    if pair.kind == "ddp":
        return env | {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": "0",
                      "WORLD_SIZE": str(pair.ranks), "GLOO_SOCKET_IFNAME": INTERFACE}
    places = {"RANK": rank, "SIZE": pair.ranks, "LOCAL_RANK": 0, "LOCAL_SIZE": 1, "CROSS_RANK": rank,
              "CROSS_SIZE": pair.ranks, "HOSTNAME": ADDRESSES[rank], "CONTROLLER": "gloo", "CPU_OPERATIONS": "gloo",
              "GLOO_RENDEZVOUS_ADDR": ADDRESSES[0], "GLOO_RENDEZVOUS_PORT": port, "GLOO_IFACE": INTERFACE}
    return env | {f"HOROVOD_{name}": str(value) for name, value in places.items()}


def _clean() -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    path = os.pathsep.join(filter(None, [str(HERE), str(HERE.parent), env.get("PYTHONPATH")]))
    return env | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path}


def _wait(processes: Sequence[subprocess.Popen[Any]], limit: float) -> str:
    """Until all have ended well ("") or one has not, or the time is over: what was wrong."""
    deadline = time.monotonic() + limit
    while True:
        codes = [process.poll() for process in processes]
        if bad := [f"rank {rank} ended with {code}" for rank, code in enumerate(codes) if code]:
            return ", ".join(bad)
        if None not in codes:
            return ""
        if time.monotonic() > deadline:
            return f"did not end within {limit:.0f} s"
        time.sleep(0.05)


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
