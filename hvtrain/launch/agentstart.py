"""Starting and ending this host's agent. Standard library only: see hvtrain.control.warmstart."""

from __future__ import annotations

import os
import subprocess
import sys

from hvtrain.control.warmstart import SECRETS

END_SECONDS = 10.0
"""How long the agent may take to end after the job; then it is killed, and the kernel ends its children."""


def start_agent(framework: str) -> subprocess.Popen:
    """Start this host's agent before the job is known; it begins by importing the framework."""
    # A session of its own keeps the terminal's Ctrl-C to the launcher, which stops the job in order.
    return subprocess.Popen([sys.executable, "-m", "hvtrain.control.agentmain", str(os.getpid()), framework],
                            stdin=subprocess.PIPE, start_new_session=True,
                            env={name: value for name, value in os.environ.items() if name not in SECRETS})


def end_agent(agent: subprocess.Popen) -> None:
    """Wait for an agent that has been told to end, or was never told its job; kill it if it does not."""
    if agent.stdin is not None and not agent.stdin.closed:
        agent.stdin.close()
    try:
        agent.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()
