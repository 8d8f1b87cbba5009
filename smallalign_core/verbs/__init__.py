"""What the verbs of the command line share: their options, and how they answer."""

from __future__ import annotations

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

progress_console = Console(stderr=True)

StoreOption = Annotated[Path, typer.Option("--store", help="Folder with all runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one field: optimizer.lr=0.01. May be repeated.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu.")]
Reference = Annotated[str, typer.Argument(metavar="RUN", help="An id, the beginning of one, a zoo name, or a path.")]
MODELS = Path("models")


def answer(value: dict[str, Any], as_json: bool, text: str | Table) -> None:
    """Print the answer of a verb: as JSON, or for people."""
    if as_json:
        sys.stdout.write(jsonlib.dumps(value) + "\n")
    else:
        Console().print(text, soft_wrap=isinstance(text, str), highlight=False, markup=False)


def percent(share: float | None) -> str:
    """A share as people read it; a dash where there is none."""
    return "–" if share is None else f"{share:.2%}"
