"""The commands under `runs`: list runs, or act on one."""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from smallalign_core import data
from smallalign_core.cli._shared import (
    MODELS,
    JsonOption,
    MovedOption,
    Reference,
    References,
    StoreOption,
    answer,
    found_at,
    percent,
)
from smallalign_core.errors import BadInput, Refused
from smallalign_core.metrics import macro_of
from smallalign_core.runs import python_files, query, spec_diff, table, trackers
from smallalign_core.runs.baseline import against
from smallalign_core.runs.store import Run, Store
from smallalign_core.runs.table import RunRow
from smallalign_core.spec import each_code
from smallalign_core.studies import membership
from smallalign_core.system import usercode

app = typer.Typer(help="List runs, or act on one.", invoke_without_command=True)


def summary(run: Run) -> dict[str, Any]:
    """What `runs show` begins with."""
    result = run.result or {}
    return {
        "id": run.id,
        "name": run.name,
        "state": str(run.state),
        "title": run.title,
        "accuracy": result.get("test", {}).get("accuracy"),
        "macro_recall": macro_of(result["test"]["recall"]) if "test" in result else None,
        **({"embedding": result["embedding"]} if "embedding" in result else {}),
        "params": result.get("params", run.status.get("params")),
        "created": run.created,
        "reason": run.status.get("reason"),
        "display_name": run.notes.name,
        "notes": run.notes.text,
        "tags": run.notes.tags,
    }


def _listed(row: RunRow) -> dict[str, Any]:
    """One run of `runs list`; one that cannot be read is listed as damaged, with the reason."""
    damaged = row.state == table.DAMAGED
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "title": row.reason if damaged else row.title,
        "accuracy": row.accuracy,
        "macro_recall": row.macro,
        "params": row.params,
        "created": row.created,
        "reason": row.reason,
        "display_name": row.display_name,
        "notes": row.notes,
        "tags": row.tags,
        "study": row.study or None,
        "progress": row.progress,
        "data": row.source,
        "teacher": row.teacher,
        "loss": row.loss,
        "optimizer": row.optimizer,
        "seed": None if row.imported or damaged else row.seed,
    }


@app.callback()
def runs_callback(context: typer.Context, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """List runs, or act on one."""
    if context.invoked_subcommand is None:
        runs_list(store, json)
    elif json or getattr(context.get_parameter_source("store"), "name", "") == "COMMANDLINE":
        raise BadInput("--store and --json come after the subcommand", do="write for example: runs list --store DIR")


@app.command("list")
def runs_list(
    store: StoreOption = MODELS,
    json: JsonOption = False,
    filter_: Annotated[
        str, typer.Option("--filter", metavar="QUERY", help="Such as: teacher:resnet acc>0.95 -tag:old sort:-acc")
    ] = "",
    trash: Annotated[bool, typer.Option("--trash", help="List deleted runs instead.")] = False,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Also by how much test accuracy differs from this run's on the same images."),
    ] = None,
) -> None:
    """List all runs, newest first, and the zoo.

    Terms of --filter: a word; field:text (contains), field=text; acc>0.95, params<50k, created>2026-11-30; -term (not);
    sort:field or sort:-field. Fields: name, id, title, state, tag, notes, data, network, teacher, loss, optimizer,
    study, acc, macro, val, params, epochs, seed, seconds, created.
    """
    place, parsed = Store(store), query.parse(filter_)
    if trash:
        if filter_:
            raise BadInput("--filter and --trash exclude each other", do="leave one of them out")
        _list_trash(place, json)
        return
    found = parsed.select(membership.rows(place))
    pinned = None if baseline is None else place.finished(baseline)
    differences = {} if pinned is None else against(found, pinned, place)
    tagged, placed = any(row.tags for row in found), any(row.study for row in found)
    id_column = Column("id or name", no_wrap=True, overflow="fold")  # to be copied
    shown = Table(id_column, "state", "run", "test accuracy", "macro recall", "parameters")
    for name, there in (("tags", tagged), ("study", placed), ("against baseline", pinned is not None)):
        if there:
            shown.add_column(name)
    for row in found:
        what = str(_listed(row)["title"])
        shown.add_row(
            row.name,
            row.state if row.progress is None else f"{row.state} {row.progress:.0%}",
            f"{row.display_name} ({what})" if row.display_name else what,
            percent(row.accuracy),
            percent(row.macro),
            f"{row.params:,}" if row.params else "–",
            *([" ".join(row.tags)] if tagged else []),
            *([row.study[:6]] if placed else []),
            *([str(differences.get(row.name, ""))] if pinned is not None else []),
        )
    if pinned is not None:
        shown.caption = f"Against {pinned.name}: points of test accuracy on the same images, paired 95% interval."
    listed = [
        _listed(row)
        | ({} if pinned is None else {"against_baseline": asdict(one) if (one := differences.get(row.name)) else None})
        for row in found
    ]
    answer({"runs": listed}, json, shown)


def _list_trash(place: Store, as_json: bool) -> None:
    found = [(one, table.row(one.run, place)) for one in place.trash()]
    shown = Table("id", "deleted", "run", "test accuracy")
    for one, row in found:
        shown.add_row(
            one.id, f"{datetime.fromtimestamp(one.deleted):%Y-%m-%d %H:%M}", row.called, percent(row.accuracy)
        )
    shown.caption = "`runs restore ID` takes one back; `doctor --fix` empties the trash."
    listed = [
        {"id": one.id, "deleted": one.deleted, "title": row.title, "accuracy": row.accuracy} for one, row in found
    ]
    answer({"trash": listed}, as_json, shown)


@app.command("rename")
def runs_rename(
    reference: Reference,
    name: Annotated[str, typer.Argument(help="The name to show in lists; empty to remove it.")],
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Name a run. Its id stays; commands take the name, too, as long as one run has it."""
    (run,) = Store(store).annotate([reference], name=name)
    answer(_noted(run), json, f"{run.name}: {run.notes.name or 'no name'}")


@app.command("note")
def runs_note(
    reference: Reference,
    text: Annotated[str, typer.Argument(help="Notes that replace the present ones; - reads standard input.")],
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Write notes about a run."""
    (run,) = Store(store).annotate([reference], text=sys.stdin.read() if text == "-" else text)
    answer(_noted(run), json, f"{run.name}: {len(run.notes.text):,} characters of notes")


@app.command("tag")
def runs_tag(
    references: References,
    add: Annotated[list[str] | None, typer.Option("--add", help="A tag to add. May be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A tag to remove. May be repeated.")] = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Add tags to runs, or remove them."""
    if not add and not remove:
        raise BadInput("no tag is given", do="write for example: runs tag RUN --add best")
    runs = Store(store).annotate(references, tag=add or (), untag=remove or ())
    lines = [f"{run.name}: {' '.join(run.notes.tags) or 'no tags'}" for run in runs]
    answer({"runs": [_noted(run) for run in runs]}, json, "\n".join(lines))


def _noted(run: Run) -> dict[str, Any]:
    return {"id": run.id, "display_name": run.notes.name, "notes": run.notes.text, "tags": run.notes.tags}


@app.command("diff")
def runs_diff(references: References, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """Fields in which the specs of runs differ."""
    if len(references) < 2:
        raise BadInput("a difference needs at least two runs", given=references[0], do="name another run")
    runs = [Store(store).run(reference) for reference in references]
    found = spec_diff.differing(runs)
    shown = Table("field", *(run.name for run in runs))
    for path, values in found.items():
        shown.add_row(path, *values)
    answer({"runs": [run.id for run in runs], "fields": found}, json, shown if found else "The specs are equal.")


@app.command("show")
def runs_show(reference: Reference, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """Show spec, state and result of a run."""
    run = Store(store).run(reference)
    value = {
        **summary(run),
        **(
            {"import": of.model_dump(mode="json")}
            if (of := run.imported)
            else {"spec": run.spec.model_dump(mode="json")}
        ),
        "result": run.result,
        "last": next(reversed(run.events()), None),
        **({"python_files": found} if not run.imported and (found := _python_files(run)) else {}),
    }
    answer(value, json, json_text(value))


def _python_files(run: Run) -> list[dict[str, Any]]:
    """The Python files of a run: the copy in its folder, and whether it may run on this machine."""
    return [
        {
            "part": one.shown,
            "copy": str(usercode.copy_in(run.folder, one.sha256)),
            "sha256": one.sha256,
            "allowed": usercode.is_trusted(one.sha256),
        }
        for one in each_code(run.spec)
        if one.sha256
    ]


def json_text(value: object) -> str:
    """Indented JSON."""
    return jsonlib.dumps(value, indent=2)


@app.command("cancel")
def runs_cancel(reference: Reference, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """Cancel a run; its last checkpoint is kept."""
    _request(reference, "cancel", store, json)


@app.command("pause")
def runs_pause(reference: Reference, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """Pause a run; the next queued run starts."""
    _request(reference, "pause", store, json)


def _request(reference: str, request: str, store: Path, as_json: bool) -> None:
    run = Store(store).run(reference)
    run.request(request)
    answer(
        {"id": run.id, "state": str(run.state), "asked": run.pending_request},
        as_json,
        f"{run.name}: {request} requested",
    )


@app.command("resume")
def runs_resume(
    reference: Reference, data_source: MovedOption = None, store: StoreOption = MODELS, json: JsonOption = False
) -> None:
    """Queue a stopped run again; it continues from its last checkpoint."""
    place = Store(store)
    run = place.run(reference)
    if not run.state.resumable:
        raise Refused(
            f"the run cannot be resumed: it is {run.state}",
            given=run.name,
            do="resume a paused, cancelled or failed run",
        )
    if data_source is not None:
        with found_at(data_source):  # remembered, so that the worker finds them too
            data.load(run.data, place.data_cache)
    place.enqueue(run)
    answer({"id": run.id, "state": str(run.state)}, json, f"{run.name}: {run.state}")


@app.command("delete")
def runs_delete(references: References, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """Move runs to the trash; `runs restore` takes them back, `doctor --fix` empties it."""
    from smallalign_core.studies import lifecycle

    place = Store(store)
    # All are there, each once, before the first is gone.
    names = list(dict.fromkeys(place.run(reference).name for reference in references))
    gone = [lifecycle.delete_run(place, name).id for name in names]
    lines = [f"{name}: moved to the trash; `smallalign runs restore {name}` takes it back" for name in gone]
    answer({"id": gone[0], "deleted": True, "runs": gone}, json, "\n".join(lines))


@app.command("restore")
def runs_restore(
    references: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of deleted runs, or prefixes.")],
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Take deleted runs back from the trash."""
    place = Store(store)
    ids = list(dict.fromkeys(place.trashed(reference).id for reference in references))
    runs = [place.restore(one) for one in ids]
    lines = [f"{run.name}: restored, {run.state}" for run in runs]
    answer({"runs": [{"id": run.name, "state": str(run.state)} for run in runs]}, json, "\n".join(lines))


@app.command("export")
def runs_export(
    reference: Reference,
    to: Annotated[trackers.Tracker, typer.Option("--to", help="The experiment tracker, or csv.")],
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="PLACE",
            help="csv: a file. tensorboard, wandb: a folder. mlflow: a file for its database, or a server's address. "
            "Default: in the current folder.",
        ),
    ] = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Write spec and metrics of a run for an experiment tracker. Local: nothing is uploaded, except to an MLflow server
    that --at names."""
    found = trackers.export(Store(store).run(reference), to, at)
    answer(asdict(found), json, f"{found.to}: {found.tracker}, {found.numbers:,} numbers at {found.points:,} steps")


@app.command("trust")
def runs_trust(reference: Reference, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """Allow the Python files of a run to run on this machine. Read them first: they can do whatever you can."""
    run = Store(store).run(reference)
    found = [
        {"file": str(path), "sha256": sha256, "allowed_before": allowed}
        for path, sha256, allowed in python_files.allow(run.spec, run.folder)
    ]
    lines = [f"{one['file']}: {'was allowed already' if one['allowed_before'] else 'allowed'}" for one in found]
    answer({"id": run.id, "files": found}, json, "\n".join(lines) or f"{run.name} has no Python files")


@app.command("keep", hidden=True)  # its name until 2026-11
@app.command("publish")
def runs_publish(
    reference: Reference,
    name: Annotated[str, typer.Option("--as", help="Name in the zoo.")],
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Publish a finished run in the zoo under a name, with a model card; specs can then name it as a teacher."""
    from smallalign_core.runs import model_card

    place = Store(store)
    kept = model_card.publish(place.finished(reference), place, name)
    answer({"id": kept.id, "name": kept.name, "folder": str(kept.folder)}, json, f"{kept.name}: {kept.folder}")
