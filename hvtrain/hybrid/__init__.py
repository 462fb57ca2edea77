"""Hybrid mode: a model cut into stages over the devices of one worker, micro-batches flowing through them.

::

    layers   [ 0  1  2 | 3  4 | 5  6  7  8 ]        partition.py: where to cut, from costs.py
                stage 0  stage 1    stage 2
    time     F0 F1 F2 .. B0 F3 B1 ..                schedule.py: what each stage does, one pass after another
"""
