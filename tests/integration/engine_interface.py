"""Runs in a network namespace of its own: prints the addresses that two ranks use with a given interface.

Exit code 77 when this kernel or user may not create the interface.
"""

from __future__ import annotations

import json
import subprocess
import sys

from engine_ranks import Rank, Store

NAME, ADDRESS = "hvtest0", "10.77.0.1"

for command in (["link", "set", "lo", "up"], ["link", "add", NAME, "type", "dummy"],
                ["addr", "add", f"{ADDRESS}/24", "dev", NAME], ["link", "set", NAME, "up"]):
    done = subprocess.run(["ip", *command], capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr.strip())
        sys.exit(77)

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
