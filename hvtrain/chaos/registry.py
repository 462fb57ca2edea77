"""Which faults have struck: a file per strike in RUN/chaos, made by whoever is going to strike, before it does.

The file's name is the claim; it can be made once, whatever processes come and go::

    000-3f2a9c1b-rank2-0.json    the first strike of fault 0 at rank 2
    003-77d01e5a-any-1.json      the second strike of fault 3, at whoever came first
    009-a2c45b90-random-41.json  the 42nd random strike of fault 9

Its content is the account of it, JSON, also written before the strike. A claim without a whole account therefore
says that its process ended in between: that strike was not made, and will not be.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hvtrain.chaos.plan import ANY, Plan
from hvtrain.errors import EnvironmentNotReady

RANDOM = "random"
_NAME = re.compile(r"(?P<fault>\d{3,})-[0-9a-f]{8}-(?P<whom>[a-z]+\d*)-(?P<number>\d+)\.json")


@dataclass(frozen=True)
class Claim:
    """One strike. ``step`` is the one being computed, or where none is, the number of committed ones.

    ``time`` is in seconds since 1970. ``struck`` is False where the process ended before it could strike; then only
    ``fault`` and ``number`` are known.
    """

    fault: int
    number: int
    kind: str = ""
    text: str = ""
    rank: int = -1
    pid: int = 0
    step: int = 0
    phase: str = ""
    round: int = 0
    time: float = 0.0
    struck: bool = True


class Registry:
    """The strikes of ``plan`` in one run. Raises EnvironmentNotReady where its directory cannot be written."""

    def __init__(self, plan: Plan, run_dir: str | os.PathLike[str]):
        self._plan = plan
        self._directory = directory(run_dir)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(self._directory, error) from None

    def claim(self, fault: int, number: int, whom: int | str, *, rank: int, pid: int, step: int, phase: str,
              round: int) -> Claim | None:
        """Take the strike ``number`` of ``fault`` at ``whom`` (a rank, "any" or "random"); None if it is taken.

        Only who gets a claim may strike, and must at once.
        """
        spec = self._plan.faults[fault]
        claim = Claim(fault, number, spec.kind, str(spec), rank, pid, step, phase, round, _now())
        path = self._path(fault, number, whom)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return None
        except OSError as error:
            raise _unusable(path, error) from None
        try:
            os.write(file, json.dumps(asdict(claim)).encode())
        except OSError as error:
            raise _unusable(path, error) from None
        finally:
            os.close(file)
        return claim

    def taken(self, fault: int, number: int, whom: int | str) -> bool:
        """Whether that strike has been claimed."""
        return self._path(fault, number, whom).exists()

    def withdraw(self, claim: Claim, whom: int | str) -> None:
        """Take a claim back: its victim was gone already."""
        self._path(claim.fault, claim.number, whom).unlink(missing_ok=True)

    def _path(self, fault: int, number: int, whom: int | str) -> Path:
        who = whom if whom in (ANY, RANDOM) else f"rank{whom}"
        return self._directory / f"{fault:03d}-{self._plan.faults[fault].fingerprint}-{who}-{number}.json"


def directory(run_dir: str | os.PathLike[str]) -> Path:
    """Where a run's claims lie."""
    return Path(run_dir) / "chaos"


def fired(run_dir: str | os.PathLike[str]) -> list[Claim]:
    """All strikes of a run in the order of time; none where no plan was used. What is no claim is left out."""
    claims = []
    for path in sorted(directory(run_dir).glob("*.json")):
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        try:
            claims.append(Claim(**json.loads(path.read_text())))
        except (ValueError, TypeError):
            claims.append(Claim(int(name["fault"]), int(name["number"]), time=path.stat().st_mtime, struck=False))
    return sorted(claims, key=lambda claim: (claim.time, claim.fault, claim.number))


def _unusable(path: Path, error: OSError) -> EnvironmentNotReady:
    return EnvironmentNotReady(f"a fault plan must write down what it does, but {path} cannot be written: "
                               f"{error.strerror}.")


def _now() -> float:
    return time.time()
