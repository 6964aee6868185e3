"""Recipes that turn a document into generations.

This package knows nothing of training: it imports neither Lightning nor LitData.
"""
