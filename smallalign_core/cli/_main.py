"""The command line: `python -m smallalign_core VERB`. It asks, calls one function, and prints one answer.

Exit codes: 0 done, 1 the work failed, 2 bad input. With --json one JSON object goes to stdout and progress to stderr.
"""

from __future__ import annotations

import os
import sys
from json import dumps as json_of
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.table import Table

from smallalign_core import data
from smallalign_core.cli._compat import ClickException
from smallalign_core.cli._shared import (
    MODELS,
    DeviceOption,
    JsonOption,
    Reference,
    StoreOption,
    answer,
    decoding,
    named,
    percent,
)
from smallalign_core.cli.compare import compare
from smallalign_core.cli.dashboard import dashboard
from smallalign_core.cli.data import inspect
from smallalign_core.cli.export import export, verify
from smallalign_core.cli.landscape import landscape
from smallalign_core.cli.models import convert, import_, preflight
from smallalign_core.cli.runs import app as runs_app
from smallalign_core.cli.studies import optimizers, scale
from smallalign_core.cli.train import submit, train, worth
from smallalign_core.errors import BadInput, SmallAlignError, of_system
from smallalign_core.runs.store import Store, looked_at
from smallalign_core.service import augmentation_api, backend, backends, worker
from smallalign_core.spec import DataSpec, read_policy
from smallalign_core.system.files import write_folder

app = typer.Typer(
    help="SmallAlign: distil, compare and ship small image classifiers.", no_args_is_help=True, add_completion=False
)
for verb in (
    dashboard,
    inspect,
    train,
    submit,
    worth,
    optimizers,
    scale,
    preflight,
    convert,
    compare,
    landscape,
    export,
    verify,
):
    app.command()(verb)
app.command("import")(import_)
app.add_typer(runs_app, name="runs")


# --- data -------------------------------------------------------------------------------------------------------------


@app.command()
def datasets(store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """What can be used here by name, and what is ready without decoding or downloading."""
    place = Store(store)
    listed = [
        {"name": name, "about": about, "prepared": data.is_prepared(DataSpec(source=name), place.data_cache)}
        for name, about in data.NAMED.items()
    ]
    table = Table("name", "what", "ready here")
    for entry in listed:
        table.add_row(str(entry["name"]), str(entry["about"]), "yes" if entry["prepared"] else "after first use")
    table.caption = "Or a path: a folder per class, a zip of one, or a folder of IDX files."
    answer({"datasets": listed}, json, table)


@app.command()
def views(
    policy: Annotated[Path, typer.Argument(help="A YAML or JSON list of parts, or a spec.")],
    data_source: Annotated[str, typer.Option("--data", help="A dataset's name, or a path.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for sheet.png, policy.yaml and policy.py.")],
    teacher: Annotated[str | None, typer.Option("--teacher", help="A run that judges whether it is the class.")] = None,
    strength: Annotated[float, typer.Option("--strength", help="0 nothing, 1 as written, up to 2.")] = 1.0,
    limit: Annotated[float, typer.Option("--limit", help="Highest share of images that may change class.")] = 0.05,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which draws.")] = 0,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """See what a policy does to images, and whether a teacher still sees the class."""
    worker.set_threads()
    parts, place = [part.model_dump() for part in read_policy(policy)], Store(store)
    asked: dict[str, Any] = {"teacher": teacher, "strength": strength, "seed": seed}
    found = augmentation_api.views(place, parts, data_source, **asked)
    judged = augmentation_api.risk(place, parts, data_source, **asked, limit=limit) if teacher else {"report": None}
    text_of = augmentation_api.code(place, parts, data_source, strength=strength)
    files = {"sheet.png": augmentation_api.sheet(found), "policy.yaml": text_of["policy"], "policy.py": text_of["code"]}
    write_folder(to, files)
    kept = {name: found[name] for name in ("rows", "labels", "said")} | {"strength": strength}
    text = f"{to}: {', '.join(files)}" + (f"\n{judged['words']}" if teacher else "")
    answer({"folder": str(to), "files": list(files), **kept, "risk": judged["report"]}, json, text)


# --- training ---------------------------------------------------------------------------------------------------------


@app.command("worker")
def worker_(
    store: StoreOption = MODELS,
    device: DeviceOption = "auto",
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    while_pid: Annotated[
        int | None, typer.Option("--while-pid", help="Stop when the queue is empty and that process is gone.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train queued runs, oldest first."""
    worker.main_log()
    stop = worker.stop_on_signals()
    taken = worker.serve(Store(store), device=device, once=once, while_pid=while_pid, stop=stop)
    answer({"taken": taken}, json, f"{taken} runs were taken from the queue")


@app.command("desk", hidden=True)
def desk_(
    store: StoreOption = MODELS,
    fork: Annotated[bool, typer.Option(help="Fork a process for each socket at standard input instead.")] = False,
) -> None:
    """Answer the dashboard's questions over a pipe."""
    out = os.fdopen(os.dup(1), "w")  # our own stdout: whatever a library prints must not get between the answers
    os.dup2(2, 1)

    def answering(questions: TextIO, answers: TextIO) -> None:
        worker.set_threads()
        backend.serve(Store(store), questions, answers)

    if fork:
        backends.fork_on_request(backend.libraries(), answering)
    else:
        answering(sys.stdin, out)


# --- judging and shipping ---------------------------------------------------------------------------------------------


@app.command()
def evaluate(
    reference: Reference,
    data_source: Annotated[str | None, typer.Option("--data", help="Other data with the same classes.")] = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Accuracy, likelihood, calibration and recall per class, on the test images."""
    from smallalign_core.metrics import zero_recall_classes
    from smallalign_core.service import comparison_api

    place = Store(store)
    worker.set_threads()
    found = comparison_api.evaluate(place, reference, data_source)
    run = place.finished(reference)
    missed = zero_recall_classes(found["recall"])
    text = (
        f"{run.name} on {found['images']:,} test images of {found['data']} ({looked_at(found['test_looks'])})\n"
        f"accuracy {percent(found['accuracy'])} "
        f"[{percent(found['accuracy_low'])}, {percent(found['accuracy_high'])}]  "
        f"NLL {found['nll']:.4f}  ECE {percent(found['ece'])}\n"
        + (f"{missed}\n" if missed else "")
        + "\n".join(f"recall of {name}: {percent(recall)}" for name, recall in found["recall"].items())
        + "".join(f"\nnote: {note}" for note in found["notes"])
    )
    answer(found, json, text)


@app.command()
def doctor(
    mend: Annotated[
        bool, typer.Option("--mend", help="Remove leftovers, and damaged files that are made again by themselves.")
    ] = False,
    store: Annotated[
        Path, typer.Option("--store", help="Folder with all runs.", parser=named, metavar="PATH")
    ] = MODELS,
    json: JsonOption = False,
) -> None:
    """Is everything here that SmallAlign needs, and is everything in the store whole? Exit code 1 if not."""
    from smallalign_core.service import doctor as health

    checks, removed = health.examine(Store(store)), []
    if mend:
        removed = [str(path) for path in health.fix(checks)]
        checks = health.examine(Store(store)) if removed else checks
    table = Table("check", "", "found")
    for check in checks:
        table.add_row(check.name, "ok" if check.ok else "MEND", check.found)
    ok = all(check.ok for check in checks)
    if removed:
        table.caption = f"Removed: {', '.join(removed)}"
    told = [{"name": c.name, "ok": c.ok, "found": c.found, "mend": [str(path) for path in c.mend]} for c in checks]
    answer({"ok": ok, "checks": told, "removed": removed}, json, table)
    if not ok:
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; every error that a person can cause is one line on stderr."""
    try:
        with decoding():
            code = app(arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SmallAlignError as error:
        if error.details and "--json" in (sys.argv[1:] if arguments is None else arguments):
            sys.stdout.write(json_of({"error": str(error), **error.details}) + "\n")
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except ClickException as error:
        wrong = " ".join(error.format_message().split()).rstrip(".")  # a list of choices comes on several lines
        sys.stderr.write(f"{BadInput(wrong, do='add --help to see what can be given')}\n")
        return 2
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("Stopped.\n")
        return 1
    except BrokenPipeError:
        return 1
    except (OSError, RuntimeError, ValueError) as error:
        if (told := of_system(error)) is None:
            raise
        sys.stderr.write(f"{told}\n")
        return told.exit_code


if __name__ == "__main__":
    sys.exit(main())
