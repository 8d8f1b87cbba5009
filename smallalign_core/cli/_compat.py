"""What the command line needs of typer beyond its documented interface; `tests/test_compat.py` notices a change."""

from __future__ import annotations

from typing import Any

import typer

ClickException: Any = next(one for one in typer.BadParameter.__mro__ if one.__name__ == "ClickException")
"""The base of the errors that a command line can cause. It is click's, of the copy that typer carries or of the package
that older ones depend on; the public `typer.BadParameter` is derived from it in both."""
