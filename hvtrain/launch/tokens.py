"""The job's token where a person gives it: in a file, in the environment, or typed. Never on a command line."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path

from hvtrain.errors import UsageError

log = logging.getLogger(__name__)

VARIABLE = "HVTRAIN_TOKEN"
FILE = ".token"
"""In the run directory: the token of a job that drew one, for as long as the job runs."""

LEAST, MOST = 32, 1024
"""Characters of a token. It is never guessed at if it is random: openssl rand -hex 32."""

_MAKE = "Make one with: (umask 077; openssl rand -hex 32 > token)"


def given(file: str | None) -> str | None:
    """The token in ``file``, else that of the environment, None if there is neither.

    The variable is taken out of the environment, so that no worker and no program that a worker starts inherits it.

    Raises:
        UsageError: it is no good as a token, or others can read the file.
    """
    from_environment = os.environ.pop(VARIABLE, "")
    if file is not None:
        return _checked(_read(Path(file)), f"the token in {file}")
    return _checked(from_environment, f"${VARIABLE}") if from_environment else None


def obtain(file: str | None) -> str:
    """As :func:`given`; a person at a terminal is asked for it. Raises UsageError if nobody gives one."""
    token = given(file)
    if token is not None:
        return token
    if not sys.stdin.isatty():
        raise UsageError("the job's token is needed. Give the file that has it (--token-file FILE), or set the environment "
                         f"variable {VARIABLE}; the job says at its start where its token is")
    import getpass

    return _checked(getpass.getpass("token of the job: "), "this token")


def keep(path: Path, token: str) -> None:
    """Write a token that was drawn for this user's eyes alone. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    os.replace(temporary, path)


def kept(path: Path) -> str | None:
    """The token in ``path``, None if there is none, or if somebody else could have put it there."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_uid in (os.geteuid(), 0) and not found.st_mode & 0o022:
                return file.read(8 * MOST).decode("utf-8", errors="replace")
    except OSError:
        return None
    log.warning("%s is left alone: it is not this user's (uid %d) alone to write, so it says nothing about the job", path,
                os.geteuid())
    return None


def forget(path: Path, token: str) -> None:
    """Remove the file, unless it has another token by now."""
    if kept(path) == token:
        path.unlink(missing_ok=True)


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            # As ssh has it: who does not own the file cannot do anything about it, say a secret mounted into a container.
            if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) & 0o077:
                raise UsageError(f"the token in {path} can be read or written by others (mode "
                                 f"{stat.S_IMODE(found.st_mode):04o}). Make it yours alone: chmod 600 {path}. If others may "
                                 "have seen it, take another token")
            return file.read(8 * MOST).decode("utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"the file with the job's token, {path}, cannot be read: {error.strerror}") from None


def _checked(text: str, where: str) -> str:
    token = text.strip()
    if len(token) < LEAST:
        raise UsageError(f"{where} has {len(token)} characters, and at least {LEAST} are needed. {_MAKE}")
    if len(token) > MOST or any(mark.isspace() or not mark.isprintable() for mark in token):
        raise UsageError(f"{where} is no token: one line of {LEAST} to {MOST} printable characters without blanks is "
                         f"expected. {_MAKE}")
    return token
