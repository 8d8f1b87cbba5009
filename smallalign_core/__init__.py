"""SmallAlign: how small can my image classifier be, and what makes it good?

The library behind the dashboard and the command line. Importing it is cheap: torch is imported on first use.

    import smallalign_core as sa

    splits = sa.load("digits")                         # train, validation and test images
    student = sa.fit("spec.yaml")                      # a finished run; identical specs reuse the cached run
    store = sa.Store("models")
    sa.compare(store.run("digits-teacher"), student, store).agreement
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import smallalign_core.system.telemetry  # noqa: F401  # first: libraries read it when they are imported

if TYPE_CHECKING:
    from smallalign_core.analysis.compare import compare
    from smallalign_core.data import Splits
    from smallalign_core.errors import SmallAlignError
    from smallalign_core.runs.store import Run, Store
    from smallalign_core.spec import RunSpec, parse, read

__version__ = "0.1.0"
__all__ = ["Run", "RunSpec", "SmallAlignError", "Splits", "Store", "compare", "fit", "load", "parse", "read"]

_MODULES = {
    "Run": "runs.store",
    "RunSpec": "spec",
    "SmallAlignError": "errors",
    "Splits": "data",
    "Store": "runs.store",
    "compare": "analysis.compare",
    "parse": "spec",
    "read": "spec",
}
"""Where the public names are defined; each module is imported at the first use of a name."""


def __getattr__(name: str) -> Any:
    """Import a public name or a module of the library on first use."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"smallalign_core.{_MODULES[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"smallalign_core.{name}"):
        return importlib.import_module(f"smallalign_core.{name}")
    raise AttributeError(f"module 'smallalign_core' has no attribute {name!r}")


def load(source: str | Mapping[str, Any], *, store: Path | str | None = None) -> Splits:
    """Train, validation and test images (uint8 NCHW) of a dataset.

    Args:
        source: a name; the path of a folder, a zip, a table of labels, a Parquet file or a folder of IDX files;
            `hf://owner/name`; or the fields of `data` in a spec, such as `source`, `columns` and `size`.

    Raises:
        BadSpec: a field is unknown or out of range.
        BadData: the source cannot be used; the message gives the reason.
    """
    from smallalign_core import data
    from smallalign_core.runs import python_files
    from smallalign_core.runs.store import Store
    from smallalign_core.spec import parse_data

    place = Store(store)
    return data.load(python_files.filled(parse_data(source), place.user), place.data_cache)


def fit(
    spec: Path | str | Mapping[str, Any],
    *,
    network: Callable[..., Any] | None = None,
    store: Path | str | None = None,
    device: str = "auto",
) -> Run:
    """Train `spec` (a YAML or JSON file, or its fields) in this process; returns the finished run.

    Args:
        network: a class or function of yours that returns an nn.Module, instead of the spec's network: called as one of
            `kind: python`, whose `with`, `normalize` and `size` the spec may have. Its source is recorded in the run
            with what it uses of its module. Where that is not possible, a warning says so, and the run cannot be
            resumed.

    Raises:
        SmallAlignError: the spec or its data cannot be used, or training failed.
    """
    import tempfile

    from smallalign_core.runs.store import Store
    from smallalign_core.service import worker
    from smallalign_core.spec import fields_in, parse
    from smallalign_core.system import usercode
    from smallalign_core.training.resolve import resolve

    place = Store(store)
    fields = fields_in(Path(spec), "spec") if isinstance(spec, str | Path) else dict(spec)
    with tempfile.TemporaryDirectory(prefix="smallalign-") as folder:
        if network is not None:
            file, given = usercode.write_down(network, Path(folder)), fields.get("network") or {}
            own = dict(given) if isinstance(given, Mapping) else {}
            fields["network"] = {**own, "kind": "python", "file": str(file), "call": file.stem}
        run = place.create(resolve(place, parse(fields), device))
    worker.execute(run, place, device=device)
    return run
