"""A process that ends while TensorFlow still traces ends as it wants to."""

from __future__ import annotations

import subprocess
import sys

from tests.support.runs import environment

SCRIPT = """\
import sys
import tensorflow as tf
from hvtrain.adapters.keras.traced import Traced, TracedBeside

def long(values):
    for _ in range(2000):
        values = tf.tanh(values)
    print("traced", flush=True)
    return values

TracedBeside(lambda: Traced(long, [tf.TensorSpec([4], tf.float32)]))
sys.exit(7)
"""


def test_a_process_that_ends_while_it_traces_ends_with_its_own_status():
    """An error before the first step, in a script without `hvtrain run`, met the optimizer's tracing in its thread.
    Python ends such threads by an exception when it ends; in TensorFlow's C++ that aborted the process: signal 6 and
    "terminate called after throwing an instance of ''", below the user's own traceback."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120,
                          env=environment(TF_CPP_MIN_LOG_LEVEL="3"))
    assert done.returncode == 7 and done.stdout == "traced\n", done.stderr
