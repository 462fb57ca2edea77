"""A job in which everything has a state, and its number of steps: statistics of normalisation, averages, schedule, callbacks."""

STEPS = 120
WHOLE = ("train.epochs=null", f"train.steps={STEPS}", "eval.every=20 steps", "task.args.norm=true", "train.ema=0.9",
         "optim.schedule={name: cosine, warmup: 10%}", "data.global_batch=33", "log.ledger=true",
         "elastic.replace_timeout=60s")
"""No replacement is late, however slow the machine: with fewer workers the sums would be rounded differently."""
