"""An elastic Horovod script, as its documentation shows it, with a commit after every step.

horovodrun -np 4 --min-np 2 --host-discovery-script ./hosts.sh python horovod_elastic.py mnist --steps 1000 --batch 8
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import islice

import horovod.torch as hvd
import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import models  # noqa: E402
from steplog import StepLog  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=models.WORKLOADS)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True, help="samples per worker")
    args = parser.parse_args()
    workload = models.WORKLOADS[args.workload]
    data = workload.data()

    hvd.init()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = workload.model()
    optimizer = workload.optimizer(model.parameters(), fused=False)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())
    log = StepLog.from_environment()

    @hvd.elastic.run
    def train(state: hvd.elastic.TorchState) -> None:
        batches = models.batches(data, args.batch, hvd.rank(), hvd.size(), args.steps)
        for inputs, targets in islice(batches, state.step, None):
            optimizer.zero_grad()
            models.loss(model(inputs), targets).backward()
            optimizer.step()
            state.step += 1
            # commit() is save() and check_host_updates(); the latter raises when hosts have changed, after the commit
            state.save()
            log.done(state.step, hvd.rank(), hvd.size())
            state.check_host_updates()

    train(hvd.elastic.TorchState(model=model, optimizer=optimizer, step=0))
    hvd.shutdown()


if __name__ == "__main__":
    main()
