"""SmallAlign: how small can my image classifier be, and what makes it good?

The library behind the dashboard and the command line. Importing it costs next to nothing: torch is imported when
something first needs it.

    import smallalign_core as sa

    splits = sa.load("digits")                         # train, validation and test images
    student = sa.fit("spec.yaml")                      # a finished run; an equal spec is never trained twice
    store = sa.store.Store("models")
    sa.compare.compare(store.run("digits-teacher"), student, store).agreement
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallalign_core import silence as silence  # first: libraries read it when they are imported

if TYPE_CHECKING:
    from smallalign_core.data import Splits
    from smallalign_core.store import Run

__version__ = "0.1.0"
__all__ = ["fit", "load"]


def __getattr__(name: str) -> Any:
    """Import a module of the library when it is first asked for."""
    if not name.startswith("_") and importlib.util.find_spec(f"smallalign_core.{name}"):
        return importlib.import_module(f"smallalign_core.{name}")
    raise AttributeError(f"module 'smallalign_core' has no attribute {name!r}")


def load(source: str, *, store: Path | str | None = None) -> Splits:
    """Train, validation and test images of a dataset: a name, a folder, a zip, or IDX files.

    Raises:
        BadData: the source cannot be used; the message says why.
    """
    from smallalign_core import data
    from smallalign_core.spec import parse_data
    from smallalign_core.store import Store

    return data.load(parse_data(source), Store(store).data_cache)


def fit(spec: Path | str | Mapping[str, Any], *, store: Path | str | None = None, device: str = "auto") -> Run:
    """Train what `spec` (a file, or its fields) describes, here and now; returns the finished run.

    Raises:
        SmallAlignError: the spec or its data cannot be used, or training failed.
    """
    from smallalign_core import desk, worker
    from smallalign_core.spec import parse, read
    from smallalign_core.store import Store

    place = Store(store)
    run = place.create(desk.resolve(place, read(Path(spec)) if isinstance(spec, str | Path) else parse(spec), device))
    worker.execute(run, place, device=device)
    return run
