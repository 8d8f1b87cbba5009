"""What the verbs of the command line share: their options, and how they answer."""

from __future__ import annotations

import contextlib
import json as jsonlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from smallalign_core import data
from smallalign_core.errors import Refused, printable
from smallalign_core.runs.store import check_root


class Terminal(Console):
    """A console on which every text is only text: no markup, no emoji, and control characters of files made visible."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, which renders every text of a message and every cell of a table."""
        style = options.get("style", "")
        return super().render_str(printable(text), style=style, markup=False, emoji=False, highlight=False)


progress_console = Terminal(stderr=True)


def named(path: str | Path) -> Path:
    """What was given as --store.

    Raises:
        Refused: nothing was: an empty variable in a script would scatter folders where it runs.
    """
    if not str(path).strip():
        raise Refused("--store is empty", do="name a folder, or leave the option out")
    return Path(path)


def usable(path: str | Path) -> Path:
    """As `named`, and a folder of that name is there or could be.

    Raises:
        Refused: as `named`; the path leads to a file, through a loop, or is too long.
    """
    check_root(named(path))
    return Path(path)


StoreOption = Annotated[
    Path,
    typer.Option("--store", help="Folder with all runs.", parser=usable, metavar="PATH", envvar="SMALLALIGN_STORE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override one field: optimizer.lr=0.01. May be repeated.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, xpu.")]
MovedOption = Annotated[
    str | None, typer.Option("--data", help="Where the run's images are now; they are known by their fingerprint.")
]
Reference = Annotated[str, typer.Argument(metavar="RUN", help="An id, the beginning of one, a zoo name, or a path.")]
MODELS = Path("models")


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, or where that is no terminal a line for each tenth of the way; called with the share done."""
    if progress_console.is_terminal:
        with Progress(console=progress_console, transient=True) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda done: bar.update(task, completed=done)
        return
    said = 0

    def told(done: float) -> None:
        nonlocal said
        if (tenth := int(10 * done + 1e-9)) > said:
            said = tenth
            sys.stderr.write(f"{what}: {10 * tenth} %\n")
            sys.stderr.flush()

    yield told
    if 0 < said < 10:  # what comes last is seldom told
        told(1.0)


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Show how far it is wherever a dataset is decoded meanwhile."""
    with contextlib.ExitStack() as bar:
        shown: list[Callable[[float], None]] = []

        def told(done: int, total: int) -> None:
            if not shown and done >= total:
                return  # it was quick
            if not shown:
                shown.append(bar.enter_context(progress("reading images")))
            shown[0](done / max(1, total))
            if done >= total:
                bar.close()
                shown.clear()

        with data.watching(told):
            yield


@contextlib.contextmanager
def found_at(source: str | None) -> Iterator[None]:
    """Look for runs' images where --data says; what was found elsewhere is said on stderr."""
    with data.found_at(source) as notes:
        yield
    for note in notes:
        progress_line(note)


def progress_line(note: str) -> None:
    """Say something beside the answer."""
    progress_console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def answer(value: dict[str, Any], as_json: bool, text: str | Table) -> None:
    """Print the answer of a verb: as JSON, or for people."""
    if as_json:
        sys.stdout.write(jsonlib.dumps(value).replace("\x7f", "\\u007f") + "\n")  # ASCII already, but for this one
    else:
        Terminal().print(text, soft_wrap=isinstance(text, str), highlight=False, markup=False)


def percent(share: float | None) -> str:
    """A share as people read it; a dash where there is none."""
    return "–" if share is None else f"{share:.2%}"
