"""The command line: `smallalign VERB`, or `python -m smallalign_core VERB`."""

from smallalign_core.cli._main import main

__all__ = ["main"]
