"""Runs in a network namespace of its own: prints the addresses that two ranks use with a given interface.

Exit code 77 when this kernel or user may not create the interface.
"""

from __future__ import annotations

import json
import subprocess
import sys

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
from engine_members import warm  # noqa: E402 - only where there is something to be tested
from engine_store import Store  # noqa: E402

store, members = Store(), warm("torch").fork(2)
begun = [member.send("init", env=store.env(rank, 2, HOROVOD_GLOO_IFACE=NAME, HOROVOD_GLOO_TIMEOUT_SECONDS="20"))
         for rank, member in enumerate(members)]
results = [member.answer(number, 40.0) for member, number in zip(members, begun)]
if all(result.get("value") == 2 for result in results):
    results = [member.do("listening") for member in members]
print(json.dumps(results))
