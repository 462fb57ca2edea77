"""Entry of an agent as a process of its own: ``python -m hvtrain.control.agentmain PARENT_PID FRAMEWORK``.

The boot record comes on standard input as one JSON object; its end without one means: never mind.
"""

from __future__ import annotations

import signal
import sys

from hvtrain.control import warmstart


def main() -> None:
    """Start the warm process, then import the rest, then serve."""
    from hvtrain.checkpoint.memory import SharedSnapshots

    memory = SharedSnapshots.create()
    warm = warmstart.start(sys.argv[2], memory.fds)
    import asyncio
    import json
    import logging

    from hvtrain.control import process
    from hvtrain.control.agent import Agent
    from hvtrain.control.boot import Boot
    from hvtrain.report import rundir

    # Told, not killed: the workers save a checkpoint first.
    process.die_with_parent(int(sys.argv[1]), signal.SIGTERM)
    process.set_name("hvtrain-agent")
    logging.basicConfig(level=logging.WARNING, format="hvtrain agent: %(message)s")
    text = sys.stdin.read()
    if not text:
        warm.process.kill()
        warm.process.wait()
        return
    record = json.loads(text)
    # Held while there are workers, so that the next start of this run waits until they have saved.
    lock = rundir.share(record["boot"]["run_dir"])

    async def serve() -> int:
        agent = Agent(Boot.from_json(record["boot"]), warm, name=record["name"], host=record["host"],
                      slots=record["slots"], job_digest=record["job_digest"], memory=memory, lock=lock)
        return await agent.run()

    code = asyncio.run(serve())
    lock.close()
    sys.exit(code)


if __name__ == "__main__":
    main()
