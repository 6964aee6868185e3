"""Measuring trained models: losses on validation suites, ensembles, downstream tasks."""
