"""Documents: reading, splitting off the validation set, tokenizers.

A corpus is a folder of Parquet tables (see :mod:`megalit.corpus.tables`). This package knows
nothing of token order, streams or models.
"""
