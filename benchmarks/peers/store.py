"""Horovod's rendezvous for one run, at an address of this network namespace; ends when its standard input does.

ip netns exec NAME python store.py 10.0.0.1
"""

from __future__ import annotations

import asyncio
import sys

from hvtrain.control.rendezvous import Rendezvous


async def serve(host: str) -> None:
    """Print the port, then serve until whoever started this closes the pipe, or dies."""
    rendezvous = Rendezvous(host)
    print(await rendezvous.start(), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await rendezvous.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
