"""Entry of an agent as a process of its own: ``python -m hvtrain.control.agentmain PARENT_PID FRAMEWORK``.

The boot record comes on standard input as one JSON object; its end without one means: never mind.
"""

from __future__ import annotations

import sys

from hvtrain.control import warmstart


def main() -> None:
    """Start the warm process, then import the rest, then serve."""
    warm = warmstart.start(sys.argv[2])
    import asyncio
    import json
    import logging

    from hvtrain.control import process
    from hvtrain.control.agent import Agent
    from hvtrain.control.boot import Boot

    process.die_with_parent(int(sys.argv[1]))
    process.set_name("hvtrain-agent")
    logging.basicConfig(level=logging.WARNING, format="hvtrain agent: %(message)s")
    text = sys.stdin.read()
    if not text:
        warm.process.kill()
        warm.process.wait()
        return
    record = json.loads(text)

    async def serve() -> int:
        agent = Agent(Boot.from_json(record["boot"]), warm, name=record["name"], host=record["host"],
                      slots=record["slots"], job_digest=record["job_digest"])
        return await agent.run()

    sys.exit(asyncio.run(serve()))


if __name__ == "__main__":
    main()
