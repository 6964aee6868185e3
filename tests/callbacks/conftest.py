"""Fixtures of the callbacks' tests."""

from running import run, small, stopped

__all__ = ["run", "small", "stopped"]
