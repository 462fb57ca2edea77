"""How horovodrun's other processes learn from the first one where the job's coordinator is.

Where it listens is said in horovodrun's key-value store, which everybody can read. The job's token is not: it lies in
a file of the run directory that only this user can read. Horovod gives its processes no common secret that could
serve instead, and passes their whole environment on a command line::

    first process                     key-value store                      another process
      .token (0600) in run.dir  ----------------------------------------->  token
      host, port, hash of the token ->  hvtrain/coordinator  ------------->  where, and which token
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable

from hvtrain.config.hybrid import HybridConfig
from hvtrain.control.client import Address
from hvtrain.errors import EnvironmentNotReady
from hvtrain.launch import tokens
from hvtrain.launch.kvstore import Store

KEY = "hvtrain/coordinator"
OPEN_VARIABLE = "HVTRAIN_TOKEN_IN_STORE"
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Notice:
    """What stands on the board: where the coordinator is, or one of the two that say that it is not any more.

    ``over``: the job has ended with this exit code. ``handover``: another process is to host the coordinator; the
    slots in it are out of the job.
    ``workers``, ``start``: how many workers the job was started with, and which start of the run it is; who comes later
    would count wrongly. ``again``: this coordinator takes over from another one, so the job goes on from where it was
    even if its file says that it is to start afresh. ``hybrid``: the job's section of that name, with what it left open
    settled.
    """

    address: Address | None = None
    over: int | None = None
    handover: tuple[str, ...] | None = None
    workers: int = 1
    start: int = 1
    again: bool = False
    hybrid: dict[str, Any] | None = None


class Board:
    """The board of one job, whose ``run_dir`` all hosts see."""

    def __init__(self, store: Store, run_dir: str | os.PathLike[str]):
        self._store, self._token_file = store, Path(run_dir) / tokens.FILE
        self._in_store = os.environ.get(OPEN_VARIABLE) == "1"

    async def announce(self, notice: Notice) -> None:
        """Say where the coordinator is. Raises ConnectionError, or OSError if the token cannot be written."""
        address = notice.address
        assert address is not None
        entry: dict[str, object] = {"host": address.host, "port": address.port, "tls": address.tls,
                                    "token_hash": _hash(address.token), "workers": notice.workers,
                                    "start": notice.start, "again": notice.again, "hybrid": notice.hybrid}
        if self._in_store:
            entry["token"] = address.token
        elif self._token() != address.token:
            tokens.keep(self._token_file, address.token)
        await self._store.put(KEY, json.dumps(entry).encode())

    async def announce_end(self, exit_code: int) -> None:
        """Say that the job is over, to processes that start late. Raises ConnectionError."""
        await self._store.put(KEY, json.dumps({"over": exit_code}).encode())

    async def announce_handover(self, out: Iterable[str]) -> None:
        """Say that another process is to take over, and who is ``out`` of the job. Raises ConnectionError."""
        await self._store.put(KEY, json.dumps({"handover": sorted(out)}).encode())

    async def read(self) -> Notice | None:
        """What stands there; None if that is nothing, or of no use: anybody may write there.

        Raises:
            ConnectionError: the store does not answer.
        """
        try:
            entry = json.loads(await self._store.get(KEY) or "null")
            if isinstance(entry.get("over"), int):
                return Notice(over=entry["over"])
            if isinstance(entry.get("handover"), list):
                return Notice(handover=tuple(map(str, entry["handover"])))
            token = str(entry["token"]) if self._in_store else self._token()
            if token is None or not hmac.compare_digest(_hash(token), str(entry["token_hash"])):
                return None
            address = Address(str(entry["host"]), int(entry["port"]), token, entry.get("tls") is True)
            return Notice(address, workers=int(entry["workers"]), start=int(entry["start"]), again=bool(entry["again"]),
                          hybrid=_section(entry["hybrid"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    async def find(self, seconds: float) -> Notice:
        """Wait for a notice.

        Raises:
            EnvironmentNotReady: there is none after ``seconds``.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        problem = "the first process did not announce the job's coordinator"
        while loop.time() < deadline:
            try:
                notice = await self.read()
                if notice is not None:
                    return notice
                if await self._store.get(KEY) is not None:
                    problem = (f"the job's coordinator is announced, but {self._token_file} with the job's token is "
                               "not there. run.dir must lie on a disk that all hosts share; where the network can be "
                               f"trusted, {OPEN_VARIABLE}=1 before horovodrun passes the token through horovodrun's "
                               "open store instead. Nothing came")
            except ConnectionError as error:
                problem = f"{error}; nothing came"
            await asyncio.sleep(POLL_SECONDS)
        raise EnvironmentNotReady(f"{problem} within launch.start_timeout ({seconds:g} s); the first process's own "
                                  "output may say why.")

    def clear(self, address: Address) -> None:
        """Remove the token's file, unless another coordinator has written its own by now."""
        tokens.forget(self._token_file, address.token)

    def _token(self) -> str | None:
        return tokens.kept(self._token_file)


def _section(values: Any) -> dict[str, Any] | None:
    """Raises ValueError for what is no ``hybrid`` section."""
    return None if values is None else HybridConfig.model_validate(values).model_dump(mode="json")


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
