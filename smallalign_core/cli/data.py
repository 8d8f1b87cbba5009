"""The command `inspect`: facts and quality of a dataset before training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from smallalign_core.analysis import data_quality
from smallalign_core.cli._shared import MODELS, JsonOption, SetOption, StoreOption, answer, data_fields, progress
from smallalign_core.errors import BadInput
from smallalign_core.runs import python_files
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import Inspect
from smallalign_core.spec import parse_data
from smallalign_core.system import resumable
from smallalign_core.system.typed import plain

Method = Literal["auto", "teacher", "pixels"]


def inspect(
    data_source: Annotated[str, typer.Argument(metavar="DATA", help="A dataset's name, or a path.")],
    method: Annotated[Method, typer.Option("--method", help="Features for label-error detection.")] = "auto",
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="A run or an import to take features for label-error detection from."),
    ] = None,
    decide: Annotated[
        Path | None, typer.Option("--decide", help="Write the decisions of automatic cleaning to this new file.")
    ] = None,
    set: SetOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Check data quality: class balance, duplicates, leakage, suspected label errors, outliers, unreadable files."""
    place = Store(store)
    if decide is not None and (decide.exists() or not decide.parent.is_dir()):
        raise BadInput(
            "the decisions file exists already or its folder does not", given=decide, do="choose another name"
        )
    spec = python_files.filled(parse_data(data_fields(data_source, set)), place.user)
    facts = handlers.inspect(place, Inspect(spec))
    check = data_quality.QualityCheck(place, spec, method, teacher)  # validates before any bar is shown
    with progress("checking data quality") as update:
        found = resumable.finish(check.report(), update)
    text = "\n".join([found.words(), *(f"note: {note}" for note in facts.notes)])
    if decide is not None:
        made = found.decisions()
        made.write(decide)
        counts = ", ".join(f"{count:,} {what}" for what, count in made.count().items()) or "no decisions"
        text += f"\n{decide}: {counts}; use it in a spec as `data.decisions`"
    answer({**plain(facts), **found.as_dict(), "words": found.words()}, json, text)
