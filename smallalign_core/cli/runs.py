"""The commands under `runs`: list runs, or act on one."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from smallalign_core import data
from smallalign_core.cli._shared import (
    MODELS,
    JsonOption,
    MovedOption,
    Reference,
    StoreOption,
    answer,
    found_at,
    percent,
)
from smallalign_core.errors import BadInput, Refused, SmallAlignError
from smallalign_core.metrics import macro_of
from smallalign_core.runs import python_files
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import each_code
from smallalign_core.system import usercode

app = typer.Typer(help="List runs, or act on one.", invoke_without_command=True)


def summary(run: Run) -> dict[str, Any]:
    """One line of `runs list`."""
    result = run.result or {}
    return {
        "id": run.id,
        "name": run.name,
        "state": str(run.state),
        "title": run.title,
        "accuracy": result.get("test", {}).get("accuracy"),
        "macro_recall": macro_of(result["test"]["recall"]) if "test" in result else None,
        "params": result.get("params", run.status.get("params")),
        "created": run.created,
        "reason": run.status.get("reason"),
    }


def _listed(run: Run) -> dict[str, Any]:
    """As `summary`; a run that cannot be read is listed as damaged instead of raising."""
    try:
        return summary(run)
    except SmallAlignError as error:
        unknown = dict.fromkeys(("accuracy", "macro_recall", "params"))
        return {
            "id": run.name,
            "name": run.name,
            "state": "damaged",
            "title": str(error),
            **unknown,
            "created": run.created,
        }


@app.callback()
def runs_callback(context: typer.Context, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """List runs, or act on one."""
    if context.invoked_subcommand is None:
        runs_list(store, json)
    elif json or getattr(context.get_parameter_source("store"), "name", "") == "COMMANDLINE":
        raise BadInput("--store and --json come after the subcommand", do="write for example: runs list --store DIR")


@app.command("list")
def runs_list(store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """List all runs, newest first, and the zoo."""
    place = Store(store)
    listed = [_listed(run) for run in [*place.runs(), *place.zoo()]]
    table = Table("id or name", "state", "run", "test accuracy", "macro recall", "parameters")
    for row in listed:
        table.add_row(
            row["name"],
            row["state"],
            row["title"],
            percent(row["accuracy"]),
            percent(row["macro_recall"]),
            f"{row['params']:,}" if row["params"] else "–",
        )
    answer({"runs": listed}, json, table)


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
def runs_delete(reference: Reference, store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """Delete a run and all its files."""
    from smallalign_core.studies import lifecycle

    run = lifecycle.delete_run(Store(store), reference)
    answer({"id": run.folder.name, "deleted": True}, json, f"{run.folder.name}: deleted")


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
