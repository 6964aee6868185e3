"""Fixtures of the command-line tests."""

from running import from_files, run, small, stopped
from scripted import scripted

__all__ = ["from_files", "run", "scripted", "small", "stopped"]
