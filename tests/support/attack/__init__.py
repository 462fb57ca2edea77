"""An attacker's list, played against a running job: ``python -m tests.support.attack`` prints what became of each line.

::

    play -> job (hvtrain run -np 3, launch.tls, 256 descriptors)     watch: which sockets listen, all the time
      |       round 1 is held up while it forms:    rendezvous, gloo's ports
      |       it trains:                            door, files
      |       a worker is killed; round 2 held up:  rendezvous, gloo's ports, the giver of the state
      `--- the job must end, with the weights of a job that was left alone
"""
