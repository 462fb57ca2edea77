"""Faults as data: a plan in YAML says what goes wrong when and where, and each fault is done as often as it says.

    plan = hvtrain.chaos.load("plan.yaml", workers=4)

::

    plan.yaml --loading--> Plan --injector--> strikes from inside a worker, at a phase of a step or of a round
                                --storm-----> times and kinds of strikes from outside, at random
                                --registry--> one file per strike in RUN/chaos, made before it is struck
"""

from hvtrain.chaos.loading import BadPlan, dump, load
from hvtrain.chaos.plan import Fault, Plan
from hvtrain.chaos.registry import Claim, fired

__all__ = ["BadPlan", "Claim", "Fault", "Plan", "dump", "fired", "load"]
