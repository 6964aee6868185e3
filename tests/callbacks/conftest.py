"""Fixtures of the callbacks' tests."""

from running import run, small

__all__ = ["run", "small"]
