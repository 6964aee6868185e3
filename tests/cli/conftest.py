"""Fixtures of the command-line tests."""

from running import from_files, run, small, stopped

__all__ = ["from_files", "run", "small", "stopped"]
