"""The verb that looks at data before anything is trained on them: `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from smallalign_core.analysis import data_quality
from smallalign_core.cli._shared import MODELS, JsonOption, SetOption, StoreOption, answer, progress
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.spec import parse_data, set_field
from smallalign_core.system import resumable

Method = Literal["auto", "votes", "teacher", "pixels"]


def inspect(
    data_source: Annotated[str, typer.Argument(metavar="DATA", help="A dataset's name, or a path.")],
    method: Annotated[Method, typer.Option("--method", help="Who judges labels without having learned them.")] = "auto",
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="A run or an import whose features judge labels.")
    ] = None,
    decide: Annotated[
        Path | None, typer.Option("--decide", help="Write what automatic cleaning would decide into this new file.")
    ] = None,
    set: SetOption = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Are the data clean enough? Balance, duplicates, leaks into test, suspected labels, outliers, unreadable files."""
    place, fields = Store(store), {"source": data_source}
    for override in set or []:
        fields = set_field(fields, override)
    if decide is not None and (decide.exists() or not decide.parent.is_dir()):
        raise BadInput("decisions go into a new file of an existing folder", given=decide, do="choose another name")
    asked: dict[str, Any] = parse_data(fields).model_dump(mode="json")
    facts = handlers.inspect(place, asked)
    looking = data_quality.QualityCheck(
        place, parse_data(asked), method, teacher
    )  # what cannot be is refused before any bar
    with progress("looking") as told:
        found = resumable.finish(looking.report(), told)
    text = "\n".join([found.words(), *(f"note: {note}" for note in facts["notes"])])
    if decide is not None:
        made = found.decisions()
        made.write(decide)
        counts = ", ".join(f"{count:,} {what}" for what, count in made.count().items()) or "nothing to decide"
        text += f"\n{decide}: {counts}; name it in a spec as `data.decisions`"
    answer({**facts, **found.as_dict(), "words": found.words()}, json, text)
