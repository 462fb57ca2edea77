"""One rank of a round, for test_engine_init.py: reads commands (JSON lines) and answers each with a JSON line.

Run as ``python engine_round.py torch|tensorflow``. Commands: {"do": NAME, ...}; errors are answered as
{"error": type, "text": message}.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore")
framework = sys.argv[1]
if framework == "torch":
    import torch

    torch.set_num_threads(1)
    import horovod.torch as hvd
else:
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    import horovod.tensorflow as hvd


def reduce(value: float, count: int, name: str) -> float:
    """The sum over all ranks of a vector of ``count`` times ``value``; its last element."""
    if framework == "torch":
        return float(hvd.allreduce(torch.full((count,), value), op=hvd.Sum, name=name)[-1])
    return float(hvd.allreduce(tf.fill([count], float(value)), op=hvd.Sum, name=name)[-1])


def run(command: dict) -> object:
    do = command["do"]
    if do == "init":
        os.environ.update(command["env"])
        hvd.init()
        return hvd.size()
    if do == "reduce":
        return reduce(command["value"], command.get("count", 3), command.get("name", "x"))
    if do == "reduce-for-ever":
        for step in range(1_000_000):
            reduce(1.0, command["count"], "x")
        return None
    if do == "sleep":
        before = time.process_time()
        time.sleep(command["seconds"])
        return time.process_time() - before
    if do == "listening":
        import psutil

        return sorted({c.laddr.ip for c in psutil.Process().net_connections("inet")})
    if do == "connections":
        import psutil

        return len(psutil.Process().net_connections("inet"))
    if do == "shutdown":
        hvd.shutdown()
        return hvd.is_initialized()
    raise ValueError(do)


print(json.dumps({"value": "ready"}), flush=True)
for line in sys.stdin:
    begin = time.monotonic()
    try:
        answer: dict = {"value": run(json.loads(line))}
    except BaseException as error:  # the test looks at the type
        answer = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps({**answer, "seconds": time.monotonic() - begin}), flush=True)
os._exit(0)
