"""The command line: `python -m smallalign_core COMMAND`. A command parses options, calls a function, prints its result.

Exit codes: 0 done, 1 the work failed, 2 bad input. With --json one JSON object goes to stdout and progress to stderr.
"""

from __future__ import annotations

import functools
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
    data_fields,
    decoding,
    named,
    percent,
)
from smallalign_core.cli.check import check
from smallalign_core.cli.compare import compare
from smallalign_core.cli.dashboard import dashboard
from smallalign_core.cli.data import inspect
from smallalign_core.cli.export import export, push, verify
from smallalign_core.cli.landscape import landscape
from smallalign_core.cli.mcp import mcp
from smallalign_core.cli.models import convert, import_, networks, preflight
from smallalign_core.cli.prune import prune
from smallalign_core.cli.runs import app as runs_app
from smallalign_core.cli.search import shrink
from smallalign_core.cli.studies import optimizers, scale
from smallalign_core.cli.train import ablate, submit, train
from smallalign_core.errors import BadInput, SmallAlignError, of_system
from smallalign_core.runs.store import Store, looked_at
from smallalign_core.service import augmentation_api, backend, backends, requests, several, worker
from smallalign_core.spec import DataSpec, parse_data, read_policy
from smallalign_core.system import usercode
from smallalign_core.system.files import write_folder

app = typer.Typer(
    help="SmallAlign: distill, compare and deploy small image classifiers.", no_args_is_help=True, add_completion=False
)
for command in (
    dashboard,
    inspect,
    train,
    submit,
    ablate,
    prune,
    shrink,
    optimizers,
    scale,
    networks,
    preflight,
    check,
    convert,
    compare,
    landscape,
    export,
    push,
    verify,
    mcp,
):
    app.command()(command)
app.command("worth", hidden=True)(ablate)  # its name until 2026-11
app.command("import")(import_)
app.add_typer(runs_app, name="runs")


# --- data -------------------------------------------------------------------------------------------------------------


@app.command()
def datasets(store: StoreOption = MODELS, json: JsonOption = False) -> None:
    """List the datasets available by name, and which are ready without decoding or downloading."""
    place = Store(store)
    listed = [
        {"name": name, "about": about, "prepared": data.is_prepared(DataSpec(source=name), place.data_cache)}
        for name, about in data.NAMED.items()
    ]
    table = Table("name", "description", "ready")
    for entry in listed:
        table.add_row(str(entry["name"]), str(entry["about"]), "yes" if entry["prepared"] else "on first use")
    table.caption = "Or a path: one folder per class, a zip of that, a table of labels, or a folder of IDX files; or hf://owner/name."
    answer({"datasets": listed}, json, table)


@app.command("views", hidden=True)  # its name until 2026-11
@app.command()
def preview(
    policy: Annotated[Path, typer.Argument(help="A YAML or JSON list of transforms, or a spec.")],
    data_source: Annotated[str, typer.Option("--data", help="A dataset's name, or a path.")],
    to: Annotated[Path, typer.Option("--to", help="Output folder for sheet.png, policy.yaml and policy.py.")],
    teacher: Annotated[str | None, typer.Option("--teacher", help="A run to check label preservation with.")] = None,
    strength: Annotated[float, typer.Option("--strength", help="Global strength: 0 off, 1 as written, up to 2.")] = 1.0,
    limit: Annotated[float, typer.Option("--limit", help="Maximum label-change rate.")] = 0.05,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed.")] = 0,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Preview an augmentation policy on images, and check label preservation with a teacher."""
    worker.set_threads()
    parts, place, source = read_policy(policy), Store(store), parse_data(data_source)
    found = augmentation_api.views(
        place, requests.AugmentImages(parts, source, strength=strength, teacher=teacher, seed=seed)
    )
    report = None
    if teacher:
        request = requests.CheckLabels(parts, source, teacher, strength=strength, seed=seed, limit=limit)
        checked = augmentation_api.risk(place, request).report
        report = checked and checked.report
    text_of = augmentation_api.code(place, requests.WritePolicy(parts, source, strength=strength))
    files: dict[str, str | bytes] = {
        "sheet.png": augmentation_api.sheet(found),
        "policy.yaml": text_of.policy,
        "policy.py": text_of.code,
    }
    write_folder(to, files)
    said = found.said and [[{"class": one.name, "confidence": one.confidence} for one in row] for row in found.said]
    kept = {"rows": found.rows, "labels": found.labels, "said": said, "strength": strength}
    text = f"{to}: {', '.join(files)}" + (f"\n{report.words()}" if report else "")
    answer({"folder": str(to), "files": list(files), **kept, "risk": report}, json, text)


# --- training ---------------------------------------------------------------------------------------------------------


@app.command("worker")
def worker_(
    store: StoreOption = MODELS,
    device: DeviceOption = "auto",
    devices: Annotated[
        str | None,
        typer.Option("--devices", help="Several, a worker process each: cuda:0,cuda:1, or all for every GPU."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    while_pid: Annotated[
        int | None, typer.Option("--while-pid", help="Stop when the queue is empty and this process has exited.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Train queued runs, oldest first."""
    worker.main_log()
    stop = worker.stop_on_signals()
    if devices is not None:
        found = several.devices(devices)
        taken = several.serve(Store(store), found, once=once, while_pid=while_pid, stop=stop)
    else:
        taken = worker.serve(Store(store), device=device, once=once, while_pid=while_pid, stop=stop)
    answer({"taken": taken}, json, f"runs executed: {taken}")


@app.command("backend", hidden=True)
def backend_(
    store: StoreOption = MODELS,
    fork: Annotated[bool, typer.Option(help="Fork one process per socket received on standard input.")] = False,
) -> None:
    """Serve the dashboard's requests over a pipe."""
    out = os.fdopen(os.dup(1), "w")  # a private stdout: what a library prints must not mix with the responses
    os.dup2(2, 1)

    def serve(requests: TextIO, responses: TextIO) -> None:
        worker.set_threads()
        backend.serve(Store(store), requests, responses)

    if fork:
        backends.fork_on_request(backend.libraries(), serve)
    else:
        serve(sys.stdin, out)


# --- evaluation and export --------------------------------------------------------------------------------------------


@app.command()
def evaluate(
    reference: Reference,
    data_source: Annotated[str | None, typer.Option("--data", help="Another dataset with the same classes.")] = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", help="One field of --data: columns.label=breed. May be repeated.")
    ] = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Accuracy, NLL, calibration and per-class recall on the test images."""
    from smallalign_core.metrics import in_words, zero_recall_classes
    from smallalign_core.service import comparison_api

    place = Store(store)
    worker.set_threads()
    if set and data_source is None:
        raise BadInput(
            "--set describes the dataset of --data", given=" ".join(set), do="add --data, or leave --set out"
        )
    fields = None if data_source is None else data_fields(data_source, set)
    found = comparison_api.evaluate(place, reference, fields)
    run = place.finished(reference)
    missed = zero_recall_classes(found["recall"])
    text = (
        f"{run.name} on {found['images']:,} test images of {found['data']} ({looked_at(found['test_looks'])})\n"
        f"accuracy {percent(found['accuracy'])} "
        f"[{percent(found['accuracy_low'])}, {percent(found['accuracy_high'])}]  "
        f"NLL {found['nll']:.4f}  ECE {percent(found['ece'])}\n"
        f"{in_words(found)}\n"
        + (f"{missed}\n" if missed else "")
        + "\n".join(f"recall of {name}: {percent(recall)}" for name, recall in found["recall"].items())
        + "".join(f"\nnote: {note}" for note in found["notes"])
    )
    answer(found, json, text)


@app.command()
def doctor(
    fix: Annotated[
        bool, typer.Option("--fix", help="Remove stale files, damaged caches that can be rebuilt, and deleted runs.")
    ] = False,
    mend: Annotated[bool, typer.Option("--mend", hidden=True, help="The name of --fix until 2026-11.")] = False,
    store: Annotated[
        Path,
        typer.Option("--store", help="Folder with all runs.", parser=named, metavar="PATH", envvar="SMALLALIGN_STORE"),
    ] = MODELS,
    json: JsonOption = False,
) -> None:
    """Check the installation and the integrity of the store. Exit code 1 if a check fails."""
    from smallalign_core.service import doctor as health

    checks, removed = health.examine(Store(store)), []
    if fix or mend:
        removed = [str(path) for path in health.fix(checks)]
        checks = health.examine(Store(store)) if removed else checks
    table = Table("check", "", "result")
    for one in checks:
        table.add_row(one.name, "ok" if one.ok else "FAILED", one.found)
    ok = all(one.ok for one in checks)
    if removed:
        table.caption = f"Removed: {', '.join(removed)}"
    listed = [{"name": c.name, "ok": c.ok, "found": c.found, "mend": [str(path) for path in c.mend]} for c in checks]
    answer({"ok": ok, "checks": listed, "removed": removed}, json, table)
    if not ok:
        raise typer.Exit(1)


@functools.cache
def _command() -> Any:
    """The command line, read from the signatures of its functions once: that takes half a second."""
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; an error that a user can cause is one line on stderr."""
    try:
        with decoding():
            code = _command()(arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except SmallAlignError as error:
        if error.details and "--json" in (sys.argv[1:] if arguments is None else arguments):
            sys.stdout.write(json_of({"error": str(error), **error.details}) + "\n")
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except ClickException as error:
        wrong = " ".join(error.format_message().split()).rstrip(".")  # a list of choices comes on several lines
        sys.stderr.write(f"{BadInput(wrong, do='see --help for the options')}\n")
        return 2
    except typer.Exit as leave:
        return leave.exit_code
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("Stopped.\n")
        return 1
    except BrokenPipeError:
        return 1
    except Exception as error:
        if (known := usercode.explanation(error) or of_system(error)) is None:
            raise
        sys.stderr.write(f"{known}\n")
        return known.exit_code


if __name__ == "__main__":
    sys.exit(main())
