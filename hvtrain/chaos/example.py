"""The plan that ``hvtrain chaos example`` prints."""

EXAMPLE = """\
# A fault plan. hvtrain run config.yaml --chaos plan.yaml
# Steps count from 1; a fault of step 40 strikes while step 40 is computed. Each strikes once (count: N for N times),
# also when its step is repeated or its rank replaced; RUN/chaos holds what has struck (hvtrain chaos report RUN).
#
# phase: start, joining, forming, state          once per process or round: no step needed; round: 2 is the earliest one
#        forward, backward, bucket, reduced,     in every step: step: N is needed (or round: N, its first one);
#        optimizer, committed                    left out, it is forward (bucket for fail)
#        evaluation, checkpoint                  now and then: step: N is the earliest one
# rank:  a rank; a list of them, which go at once; or any (the default), chosen by the seed
seed: 0
faults:
  - {kind: kill, step: 40, phase: backward, rank: 2}           # SIGKILL
  - {kind: kill, step: 60, phase: bucket, rank: [1, 2]}        # two at once
  - {kind: stop, step: 80, rank: 1}                            # SIGSTOP: alive, but says nothing any more
  - {kind: raise, step: 90, rank: 0}                           # an exception in user code
  - {kind: slow, step: 100, steps: 20, rank: 3, seconds: 0.2}  # 0.2 s more in each of 20 steps
  - {kind: hang, step: 130, rank: 1}                           # stuck in user code; the process still answers
  - {kind: leave, step: 150, rank: 1}                          # asks to leave at the next step boundary
  - {kind: cut, step: 170, rank: 2}                            # shuts its connections to the other workers
  - {kind: fail, step: 190, phase: bucket, rank: 1}            # a reduction fails
  - {kind: kill, phase: joining, round: 2, count: 2}           # the next two replacements, while they join
  - {kind: kill, phase: checkpoint, rank: 0}                   # while the first checkpoint is written
  - {kind: kill, every: 20s, during: 3m}                       # random workers at random times, one in 20 s on average
"""
