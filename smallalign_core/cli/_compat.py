"""What the command line needs of typer beyond its documented interface; `tests/test_compat.py` notices a change."""

from __future__ import annotations

from typing import Any

import typer

ClickException: Any = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException")
"""Base class of command-line usage errors: click's, either vendored by typer or (older typer) the separate package;
the public `typer.BadParameter` derives from it in both."""
