"""The drill: a user's own job, small, once undisturbed and once under a fault plan, and what the comparison shows.

::

    job file --conduct--> hvtrain run                  --> evidence of the undisturbed run --+
                     +--> hvtrain run --chaos plan.yaml --> evidence of the disturbed one ----+--> verdict --> tables
"""
