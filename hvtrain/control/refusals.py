"""Logging who was refused, not more often than a person can read: strangers must not fill a disk."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

LOGGED_PER_SECOND = 10
"""Refusals that are logged one by one; of more only the number is."""


class HttpNoise(logging.Filter):
    """For the logger of an HTTP server: what is wrong with a stranger's request is a refusal, not a traceback."""

    def __init__(self, refusals: Refusals):
        super().__init__()
        self._refusals = refusals

    def filter(self, record: logging.LogRecord) -> bool:
        kind, error = record.exc_info[:2] if record.exc_info else (None, None)
        if kind is None or not any(base.__name__ == "HttpProcessingError" for base in kind.__mro__):
            return True
        self._refusals.log("somewhere", f"no HTTP: {str(error).splitlines()[0][:100] if str(error) else kind.__name__}")
        return False


class Refusals:
    """Those of one listening socket. ``where``: what was wanted of it, for instance " to a round's rendezvous"."""

    def __init__(self, where: str = ""):
        self._where, self._since, self._count = where, 0.0, 0

    def log(self, remote: str | None, why: str) -> None:
        """``remote``: its address."""
        now = time.monotonic()
        if now - self._since >= 1.0:
            if self._count > LOGGED_PER_SECOND:
                log.warning("%d more connections%s were refused", self._count - LOGGED_PER_SECOND, self._where)
            self._since, self._count = now, 0
        self._count += 1
        if self._count <= LOGGED_PER_SECOND:
            log.warning("refused a connection%s from %s: %s", self._where, remote, why)

    def logger(self, name: str) -> logging.Logger:
        """A logger for an HTTP server, without the noise that strangers make."""
        quiet = logging.Logger(name)
        quiet.parent = log
        quiet.addFilter(HttpNoise(self))
        return quiet
