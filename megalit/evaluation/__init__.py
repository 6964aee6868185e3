"""Measuring models: losses of tokens, curves over position and context, benchmarks.

It knows suites by what it asks of them (:class:`megalit.evaluation.losses.Suite`), not where their tokens come from.
"""
