"""The command line: `smallalign COMMAND`, or `python -m smallalign_core COMMAND`."""

from smallalign_core.cli._main import main

__all__ = ["main"]
