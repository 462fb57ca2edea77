"""Horovod's operations in a hand-written step: horovodrun -np 2 python horovod_keras.py mnist --reduce grouped

``DistributedOptimizer`` and ``DistributedGradientTape`` of Horovod 0.28.1 do not work with Keras 3's optimizers; its plain
operations do. With ``--reduce none`` this is what one process does by itself.
"""

from __future__ import annotations

import argparse
import os
import sys

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import keras_models as models  # noqa: E402
from stopwatch import Stopwatch  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=models.WORKLOADS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples per worker")
    parser.add_argument("--reduce", choices=["grouped", "each", "none"], default="grouped",
                        help="all gradients in one operation, each in one of its own, or none at all")
    args = parser.parse_args()
    workload = models.WORKLOADS[args.workload]

    hvd.init()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    model = workload.model()
    optimizer = workload.optimizer()
    optimizer.build(model.trainable_variables)
    hvd.broadcast_variables([variable.value for variable in [*model.variables, *optimizer.variables]], root_rank=0)
    reduce = {"grouped": hvd.grouped_allreduce, "none": lambda gradients: gradients,
              "each": lambda gradients: [hvd.allreduce(gradient) for gradient in gradients]}[args.reduce]

    @tf.function
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(models.sample_losses(model(inputs, training=True), targets))
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply(reduce(gradients), model.trainable_variables)
        return loss

    def barrier() -> None:
        hvd.allreduce(tf.zeros(1), op=hvd.Sum, name="benchmark.barrier")

    watch = Stopwatch(hvd.rank(), args.steps, barrier)
    for inputs, targets in models.batches(workload.data(), args.batch, hvd.rank(), hvd.size(), args.steps):
        loss = step(tf.convert_to_tensor(inputs), tf.convert_to_tensor(targets))
        loss.numpy()  # as whoever logs it does, and hvtrain with every step
        watch.step_done(model, optimizer)
    hvd.shutdown()


if __name__ == "__main__":
    main()
