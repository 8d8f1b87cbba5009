"""The command `check`: the contract checks of the library on a user's own network, loss, transform or reader."""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from smallalign_core.cli._shared import JsonOption, answer
from smallalign_core.errors import BadInput, BadSpec, SmallAlignError
from smallalign_core.spec import Code, PythonAugment, PythonLoss, PythonNetwork, part_of
from smallalign_core.spec.data import PythonReader
from smallalign_core.system import usercode

Kind = Literal["network", "loss", "augmentation", "reader"]
PARTS: dict[Kind, type[Code]] = {
    "network": PythonNetwork,
    "loss": PythonLoss,
    "augmentation": PythonAugment,
    "reader": PythonReader,
}
BY_PARAMETER: dict[str, Kind] = {"student": "loss", "classes": "network", "source": "reader"}
"""Parameters that only functions of one kind have."""
IMPORT = "import"


def check(
    file: Annotated[Path, typer.Argument(help="A Python file with a network, loss, transform or reader of yours.")],
    call: Annotated[
        str | None, typer.Option("--call", help="Function or class; default: make, or loss if there is one.")
    ] = None,
    given: Annotated[
        list[str] | None, typer.Option("--with", help="A keyword argument: width=24. May be repeated.")
    ] = None,
    kind: Annotated[
        Kind | None,
        typer.Option(
            "--kind",
            help="Default: loss if the function has a parameter `student`, network if it has `classes`, reader if it "
            "has `source`, else augmentation.",
        ),
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=2, max=10_000, help="Number of classes.")] = 10,
    channels: Annotated[int, typer.Option("--channels", min=1, max=3, help="Channels of the images.")] = 3,
    size: Annotated[int, typer.Option("--size", min=4, max=512, help="Side of the images in pixels.")] = 32,
    data_source: Annotated[
        Path | None, typer.Option("--data", help="The folder or file that a reader reads; default: that of the file.")
    ] = None,
    zero: Annotated[
        bool, typer.Option("--zero", help="The loss claims to be 0 where student and teacher logits are equal.")
    ] = False,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="Time limit for all checks together.")] = 120.0,
    inside: Annotated[bool, typer.Option("--inside", hidden=True, help="Do the checks in this process.")] = False,
    json: JsonOption = False,
) -> None:
    """Check a network, loss, image transform or dataset reader of yours. Exit code 1 if a check fails.

    The file runs in a process of its own, with a time limit.
    """
    shape = (channels, size, size)
    usercode.read(file)
    if inside:
        for line in _findings(file, ", ".join(given or []), call, kind, classes, shape, data_source, zero=zero):
            sys.stdout.write(jsonlib.dumps(line) + "\n")
            sys.stdout.flush()
        return
    arguments = [str(file), "--classes", str(classes), "--channels", str(channels), "--size", str(size)]
    arguments += [
        *(["--call", call] if call else []),
        *(["--kind", kind] if kind else []),
        *(["--zero"] if zero else []),
        *(["--data", str(data_source)] if data_source else []),
    ]
    arguments += [word for one in given or [] for word in ("--with", one)]
    found, what = _by_child(file, arguments, seconds)
    ok = not any(one["passed"] is False for one in found)
    table = Table("check", "", "result", title=what)
    for one in found:
        mark = {True: "passed", False: "FAILED", None: "not applicable"}[one["passed"]]
        table.add_row(one["check"], mark, one["words"])
    answer({"ok": ok, "file": str(file), "part": what, "checks": found}, json, table)
    if not ok:
        raise typer.Exit(1)


def _by_child(file: Path, arguments: list[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """The findings of a process with these arguments, which is ended after so many seconds; and what it checked."""
    command = [sys.executable, "-m", "smallalign_core", "check", *arguments, "--inside"]
    found, what, doing, late = list[dict[str, Any]](), str(file), IMPORT, threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:

        def end() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            try:
                said = jsonlib.loads(line)
                what, doing = said.get("part", what), said.get("doing", doing)
            except (ValueError, AttributeError):  # the file prints
                continue
            if "check" in said:
                found.append(said)
        errors = child.stderr.read()
        code = child.wait()
        timer.cancel()
    if late.is_set():
        words = f"no result within {seconds:g} s: an endless loop, or too much work; --seconds raises the limit"
        found.append({"check": doing, "passed": False, "words": words})
    elif code == 2:
        raise BadSpec(errors.strip().splitlines()[-1].rstrip(".") if errors.strip() else "the check could not begin")
    elif code != 0:
        last = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
        found.append({"check": doing, "passed": False, "words": f"the process ended: {last[0][:300]}"})
    return found, what


def _findings(
    file: Path,
    given: str,
    call: str | None,
    kind: Kind | None,
    classes: int,
    shape: tuple[int, int, int],
    source: Path | None,
    *,
    zero: bool,
) -> Iterator[dict[str, Any]]:
    """What the child says: what it does next, and each finding."""
    from smallalign_core.training import contracts

    sha256 = usercode.read(file)[1]
    usercode.trust_here(sha256)
    fields = {"kind": "python", "file": str(file.resolve()), "sha256": sha256, "with": given}
    yield {"doing": IMPORT}
    try:
        kind, call = _what(file, call, kind, sha256)
        part = part_of(PARTS[kind], {**fields, "call": call})
    except SmallAlignError as error:
        if isinstance(error, BadSpec):
            raise
        yield {"check": IMPORT, "passed": False, "words": str(error)}
        return
    yield {"check": IMPORT, "passed": True, "words": f"{file.name} has {call}", "part": f"{kind}: {part.shown}"}
    match part:
        case PythonLoss():
            todo = contracts.of_loss(part, classes=classes, zero=zero)
        case PythonNetwork():
            todo = contracts.of_network(part, classes=classes, shape=shape)
        case PythonAugment():
            todo = contracts.of_augmentation(part, shape=shape)
        case PythonReader():
            todo = contracts.of_reader(part, (source or file.parent).resolve())
        case _:
            raise AssertionError(part)
    for name, done in todo:
        yield {"doing": name}
        try:
            passed, words = done()
        except Exception as error:  # noqa: BLE001  # a failure of the part, not of the command
            known = usercode.explanation(error)
            passed, words = False, str(known) if known else f"{type(error).__name__}: {error}"
        yield {"check": name, "passed": passed, "words": words}


def _what(file: Path, call: str | None, kind: Kind | None, sha256: str) -> tuple[Kind, str]:
    """The kind of a part, and its function: as given, or found in the file."""
    usual = {str(one.model_fields["call"].default): None for one in ([PARTS[kind]] if kind else PARTS.values())}
    names = [call] if call else list(usual)
    for name in names:
        try:
            found = usercode.function_of(file.resolve(), name, sha256)
        except BadInput:
            if name == names[-1]:
                raise
            continue
        kinds: list[Kind] = [of for has, of in BY_PARAMETER.items() if usercode.accepted(found, {has: None})]
        return kind or (kinds[0] if kinds else "augmentation"), name
    raise AssertionError
