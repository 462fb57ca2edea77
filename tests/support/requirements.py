"""What some tests need of the machine: where it is missing they are skipped, or fail if it has to be there."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from hvtrain.engine.info import installed_record

REQUIRED = "HVTRAIN_REQUIRE_HOSTS"
"""Set to 1, a machine where there can be no hosts, or with an older engine, fails the tests that need them."""


def need_hosts() -> None:
    """The test needs :class:`tests.support.hosts.Hosts`."""
    missing = [tool for tool in ("ip", "tc", "nsenter", "unshare", "ssh", "ssh-keygen") if not shutil.which(tool)]
    missing += ["sshd"] if not os.path.exists("/usr/sbin/sshd") else []
    reason = (f"hosts need {', '.join(missing)} (Debian: iproute2, util-linux, openssh-server)" if missing else
              "hosts need root, for network namespaces" if os.geteuid() else _forbidden())
    if reason:
        lacking(reason)


def need_edit(name: str) -> None:
    """The test needs an engine that was built with this edit (hvtrain/engine/edits.py)."""
    if name not in (installed_record() or {}).get("edits", ()):
        lacking(f"the installed engine is an older one, without the edit {name!r}. Build it anew: hvtrain engine build")


def lacking(reason: str) -> None:
    """Skip this test for ``reason``; fail it where nothing may be missing."""
    (pytest.fail if os.environ.get(REQUIRED) == "1" else pytest.skip)(reason)


def _forbidden() -> str:
    """Why this machine lets root make no network namespace; empty if it does."""
    tried = subprocess.run(["unshare", "--net", "--mount", "--uts", "true"], capture_output=True, text=True)
    return f"hosts need network namespaces: {tried.stderr.strip()}" if tried.returncode else ""
