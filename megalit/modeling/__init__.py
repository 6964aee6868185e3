"""The language model and its training step.

This package knows nothing of files, stores or streams: batches bring tokens, targets and their
provenance, and the trainer's data module brings the plan (see ``TrainingPlan``).
"""
