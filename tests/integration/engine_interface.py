"""Runs in a network namespace of its own: prints the addresses that two ranks use with a given interface.

Exit code 77 when this kernel or user may not create the interface.
"""

from __future__ import annotations

import json
import subprocess
import sys

from engine_ranks import Rank, Store

NAME, ADDRESS = "hvtest0", "10.77.0.1"


def ip(*arguments: str) -> str:
    """Run ip; its complaint, empty if it worked."""
    return subprocess.run(["ip", *arguments], capture_output=True, text=True).stderr.strip()


def make_interface() -> None:
    complaints = []
    for kind in ("dummy", "veth", "bridge"):  # whichever this kernel knows
        complaint = ip("link", "add", NAME, "type", kind)
        if not complaint:
            break
        complaints.append(f"{kind}: {complaint}")
    else:
        print("; ".join(complaints))
        sys.exit(77)
    for arguments in (["link", "set", "lo", "up"], ["addr", "add", f"{ADDRESS}/24", "dev", NAME],
                      ["link", "set", NAME, "up"]):
        complaint = ip(*arguments)
        if complaint:
            print(complaint)
            sys.exit(77)


make_interface()
store, ranks = Store(), [Rank("torch"), Rank("torch")]
try:
    for rank in ranks:
        rank.answer(90)
    for number, rank in enumerate(ranks):
        rank.send("init", env=store.env(number, 2, HOROVOD_GLOO_IFACE=NAME, HOROVOD_GLOO_TIMEOUT_SECONDS="20"))
    results = [rank.answer(40) for rank in ranks]
    if all(result.get("value") == 2 for result in results):
        for rank in ranks:
            rank.send("listening")
        results = [rank.answer(10) for rank in ranks]
    print(json.dumps(results))
finally:
    for rank in ranks:
        rank.kill()
