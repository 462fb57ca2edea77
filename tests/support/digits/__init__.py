"""One task, three times: a perceptron on small images of digits, in PyTorch, in Keras and in NumPy.

All begin with the same weights, made by NumPy (:mod:`tests.support.digits.common`). Each module has a ``Digits``,
which is the task, and what :class:`tests.support.conformance.Kit` says.
"""
