"""ssh as a way to a host: its command line, and what its failures mean for a person. Pure.

No secret is ever part of the command: what the far side must know goes over standard input.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import Mapping, Sequence

ALIVE_SECONDS, ALIVE_COUNT = 5, 3
"""ssh asks the far side so often for a sign of life, and gives it up when so many of them are missing."""

LOST = 255
"""ssh's own exit code; any other is that of the command."""


@dataclass(frozen=True)
class Settings:
    """How hosts are reached: of the job's ``launch`` section. ``connect`` in seconds."""

    port: int | None = None
    identity: str | None = None
    connect: float = 10.0


@dataclass(frozen=True)
class Trouble:
    """Why a host cannot take part, and what to type next. ``passing``: it may go by itself."""

    what: str
    remedy: str = ""
    passing: bool = False


def command(host: str, remote: str, settings: Settings) -> list[str]:
    """The arguments of ssh that run ``remote``, a command for the far side's shell, on ``host``."""
    options = {"BatchMode": "yes", "ConnectTimeout": str(max(1, round(settings.connect))), "ConnectionAttempts": "1",
               "ServerAliveInterval": str(ALIVE_SECONDS), "ServerAliveCountMax": str(ALIVE_COUNT),
               "ControlPath": "none", "ClearAllForwardings": "yes", "RequestTTY": "no", "PermitLocalCommand": "no"}
    words = ["ssh", "-x", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    return [*words, *options_of(settings), "--", host, remote]


def options_of(settings: Settings) -> list[str]:
    """The port and the key, as ssh and ssh-copy-id take them."""
    words = ["-p", str(settings.port)] if settings.port is not None else []
    return [*words, "-i", settings.identity] if settings.identity is not None else words


def typed(host: str, settings: Settings) -> str:
    """What a person types to be there: ``ssh -p PORT -i KEY host``."""
    return shlex.join(["ssh", *options_of(settings), host])


def remote_python(python: str, module: str, variables: Mapping[str, str]) -> str:
    """A command for any shell that becomes a Python ``module`` with these environment ``variables``."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    return "exec " + shlex.join([*(["env", *settings] if settings else []), python, "-m", module])


def trouble(host: str, code: int, said: Sequence[str], settings: Settings, python: str) -> Trouble:
    """What it means that ssh ended with this ``code`` before the far side answered; it ``said`` these lines."""
    text = "\n".join(said)
    via = typed(host, settings)
    found = re.search(r"\bport (\d+)", text)  # the user's own settings of ssh may name another one
    port = found[1] if found else settings.port or 22
    if code == LOST:
        for pattern, what, remedy, passing in _OF_SSH:
            if re.search(pattern, text, re.IGNORECASE):
                name = host.rpartition("@")[2]
                copy = shlex.join(["ssh-copy-id", *options_of(replace(settings, port=int(port))), host])
                return Trouble(what.format(port=port), remedy.format(host=name, via=via, port=port, copy=copy), passing)
        return Trouble(f"ssh failed: {_last(said)}", f"try: {via} true", True)
    if "No module named" in text:
        name = (re.search(r"No module named '?([\w.]+)", text) or [text, "hvtrain"])[1]
        if name == "hvtrain":
            return Trouble("hvtrain is not installed there",
                           f"{via} {shlex.quote(f'{python} -m pip install hvtrain')}, or share the environment's directory")
        if name.startswith("hvtrain."):
            return Trouble("an older hvtrain is installed there", "install the same version on all hosts")
        return Trouble(f"hvtrain cannot be imported there: no module named {name}",
                       "install the same packages on all hosts")
    if code in (126, 127):
        return Trouble(f"no Python at {python}",
                       "set up the same environment at the same path on all hosts, or share its directory")
    return Trouble(f"it ended with exit code {code} before it answered: {_last(said)}", f"try: {via} {python} --version")


def _last(said: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")


_OF_SSH = (  # pattern, what it means, what to type next, whether it may pass
    ("REMOTE HOST IDENTIFICATION HAS CHANGED",
     "its host key is not the one that is known: another machine, or set up anew",
     "if you know why: ssh-keygen -R {host}, then {via}", False),
    ("Host key verification failed|host key is known for", "its host key is unknown here",
     "{via}   (compare the fingerprint, answer yes)", False),
    ("Too many authentication failures", "ssh offered too many keys",
     "name the right one: --ssh-identity-file FILE", False),
    ("Permission denied", "it does not let you in without a password", "{copy}", False),
    ("Could not resolve hostname", "no such name is known here",
     "getent hosts {host}   (look at the spelling, /etc/hosts, DNS)", False),
    ("Connection refused", "nothing listens on its port {port}",
     "is sshd running there? another port: --ssh-port PORT", True),
    ("timed out|did not properly respond", "no answer on port {port}",
     "is it on, and its firewall open? ping {host}", True),
    ("No route to host|Network is unreachable|host is down", "there is no way to it through the network",
     "is it on? ping {host}", True),
    ("kex_exchange|banner exchange|Connection (closed|reset)|Broken pipe|not responding",
     "the connection was closed before it stood", "is it sshd that listens on port {port}? try: {via} true", True),
    ("Bad (owner|permissions)|UNPROTECTED PRIVATE KEY|Bad configuration option|terminating, \\d+ bad",
     "your ssh settings are refused", "try: {via} true", False),
)
