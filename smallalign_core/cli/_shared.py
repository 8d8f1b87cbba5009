"""Shared by all commands: options, progress bars and output."""

from __future__ import annotations

import contextlib
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
from smallalign_core.errors import BadInput, Refused, printable
from smallalign_core.runs.store import check_root
from smallalign_core.spec import set_field
from smallalign_core.system.typed import encode


class Terminal(Console):
    """A console that prints text literally: no markup, no emoji, control characters escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich's, which renders every text of a message and every cell of a table."""
        style = options.get("style", "")
        return super().render_str(printable(text), style=style, markup=False, emoji=False, highlight=False)


progress_console = Terminal(stderr=True)


def named(path: str | Path) -> Path:
    """The value of --store.

    Raises:
        Refused: it is empty: an unset variable in a script would otherwise create a store in the current folder.
    """
    if not str(path).strip():
        raise Refused("--store is empty", do="name a folder, or leave the option out")
    return Path(path)


def usable(path: str | Path) -> Path:
    """As `named`, and checked to be a folder that exists or can be created.

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
    str | None, typer.Option("--data", help="New location of the run's images; verified by fingerprint.")
]
QueueOption = Annotated[bool, typer.Option("--queue", help="Queue the runs for workers and report what is finished.")]
Reference = Annotated[str, typer.Argument(metavar="RUN", help="A run id or unique prefix, a zoo name, or a path.")]
References = Annotated[
    list[str], typer.Argument(metavar="RUN...", help="Run ids or unique prefixes, zoo names, or paths.")
]
MODELS = Path("models")


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr (without a terminal: a line per 10%). Yields a function of the share done, 0 to 1."""
    if progress_console.is_terminal:
        with Progress(console=progress_console, transient=True) as bar:
            task = bar.add_task(what, total=1.0)
            yield lambda done: bar.update(task, completed=done)
        return
    printed = 0

    def update(done: float) -> None:
        nonlocal printed
        if (tenth := int(10 * done + 1e-9)) > printed:
            printed = tenth
            sys.stderr.write(f"{what}: {10 * tenth}%\n")
            sys.stderr.flush()

    yield update
    if 0 < printed < 10:  # the last update is seldom exactly 1
        update(1.0)


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Show a progress bar while a dataset is being decoded."""
    with contextlib.ExitStack() as bar:
        shown: list[Callable[[float], None]] = []

        def update(done: int, total: int) -> None:
            if not shown and done >= total:
                return  # nothing to show
            if not shown:
                shown.append(bar.enter_context(progress("reading images")))
            shown[0](done / max(1, total))
            if done >= total:
                bar.close()
                shown.clear()

        with data.watching(update):
            yield


@contextlib.contextmanager
def found_at(source: str | None) -> Iterator[None]:
    """Search runs' images at --data; a note on stderr for each that was found elsewhere."""
    with data.found_at(source) as notes:
        yield
    for note in notes:
        progress_line(note)


def data_fields(source: str, overrides: list[str] | None) -> dict[str, Any]:
    """The fields of a dataset by its name or path and `--set`; `data.` may be left out before a field."""
    fields: dict[str, Any] = {"source": source}
    for override in overrides or []:
        if override.removeprefix("data.").partition("=")[0].strip() == "source":
            raise BadInput("--set names another dataset", given=override, do=f"give it in the place of {source}")
        fields = set_field(fields, override.removeprefix("data."))  # as in a spec, and as messages name the field
    return fields


def progress_line(note: str) -> None:
    """Print a note on stderr."""
    progress_console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def answer(value: dict[str, Any], as_json: bool, text: str | Table) -> None:
    """Print the result of a command: as one JSON object, or as text."""
    if as_json:
        sys.stdout.write(
            encode(value).replace("\x7f", "\\u007f") + "\n"
        )  # ASCII except DEL, which JSON leaves unescaped
    else:
        Terminal().print(text, soft_wrap=isinstance(text, str), highlight=False, markup=False)


def percent(share: float | None) -> str:
    """A share (0 to 1) as a percentage; a dash for None."""
    return "–" if share is None else f"{share:.2%}"
