"""The command `mcp`: verbs that print JSON, as tools of the Model Context Protocol for assistants, over stdio.

Each call runs the command line in a process of its own, so that nothing a library prints can mix with the protocol, and
a tool does exactly what the command does. Without --write there are only tools that change no run.
"""

from __future__ import annotations

import functools
import json as jsonlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import Field

from smallalign_core.cli._shared import MODELS, StoreOption
from smallalign_core.errors import BadInput, SmallAlignError, WorkFailed
from smallalign_core.spec import each_code, parse
from smallalign_core.spec.precision import Precision
from smallalign_core.system import extras

WHAT = "the server for assistants"
LONGEST = 600.0
"""Seconds of one call. Training is queued, so that none takes so long."""
ABOUT = (
    "Small image classifiers distilled from a large one. Runs are named by id, unique prefix or zoo name. Training is "
    "queued: submit_run returns the run's id at once, a worker (`smallalign worker`, or the dashboard) trains it, and "
    "show_run has its progress. Accuracies come with 95% intervals; differences within them are undecided."
)

RunName = Annotated[str, Field(description="A run id or unique prefix, or a zoo name.")]
RunNames = Annotated[list[str], Field(min_length=1, description="Run ids or unique prefixes, or zoo names.")]
DataName = Annotated[str, Field(description="A dataset's name (list_datasets), or the path of a folder, zip or table.")]
Spec = Annotated[
    dict[str, Any],
    Field(description="A run's spec, such as {data: digits, network: {kind: cnn, width: 8}, teacher: digits-teacher}."),
]


class Tools:
    """The tools, by name; their signatures are what assistants see."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def _call(self, *verb: str, names: Sequence[str] = ()) -> dict[str, Any]:
        """What a command prints as JSON. Names are never read as options."""
        line = [sys.executable, "-m", "smallalign_core", *verb, "--json", "--store", str(self.store), "--", *names]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(line, text=True, start_new_session=True, **pipes) as process:
            try:
                out, err = process.communicate(timeout=LONGEST)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
                raise WorkFailed(f"the command took more than {LONGEST:.0f} seconds", given=" ".join(verb)) from None
        try:
            found: dict[str, Any] = jsonlib.loads(out)
        except ValueError:
            words = err.strip().splitlines()
            raise WorkFailed(words[-1] if words else f"exit code {process.returncode}") from None
        return found

    def _check_here(self, data: str | None) -> None:
        """Raises BadInput for a dataset that would be downloaded, which is for the owner of this machine to start."""
        named = {one["name"]: one["prepared"] for one in self.list_datasets()["datasets"]} | {"digits": True}
        if data is not None and (data.startswith("hf://") or not named.get(data, True)):
            do = f"run `smallalign inspect {data}` yourself first"
            raise BadInput("an assistant does not download datasets", given=data, do=do)

    # --- these change no run ---

    def list_datasets(self) -> dict[str, Any]:
        """Datasets available by name, and which are ready without downloading."""
        return self._call("datasets")

    def inspect_dataset(self, data: DataName) -> dict[str, Any]:
        """Classes, sizes and data-quality findings of a dataset on this machine."""
        self._check_here(data)
        return self._call("inspect", names=[data])

    def list_runs(
        self, filter: Annotated[str, Field(description="Such as: teacher:resnet acc>0.95 sort:-acc")] = ""
    ) -> dict[str, Any]:
        """Runs, newest first, with state, test accuracy and parameters."""
        return self._call("runs", "list", f"--filter={filter}")

    def show_run(self, run: RunName) -> dict[str, Any]:
        """Spec, state, progress and result of a run."""
        return self._call("runs", "show", names=[run])

    def diff_runs(self, runs: Annotated[list[str], Field(min_length=2)]) -> dict[str, Any]:
        """The fields in which the specs of runs differ."""
        return self._call("runs", "diff", names=runs)

    def doctor(self) -> dict[str, Any]:
        """Whether the installation and the store are sound."""
        return self._call("doctor")

    # --- these do ---

    def submit_run(self, spec: Spec) -> dict[str, Any]:
        """Queue a run and return its id at once. An equal spec is the same run. Paths must be absolute."""
        parsed = parse(spec)
        if any(each_code(parsed)):
            do = "run `smallalign submit` yourself"
            raise BadInput("an assistant does not start Python files of a user", given="kind: python", do=do)
        self._check_here(parsed.data.source)
        self._check_here(parsed.data.unlabeled)
        with tempfile.TemporaryDirectory(prefix="smallalign-") as folder:
            file = Path(folder) / "spec.json"
            file.write_text(jsonlib.dumps(spec))
            return self._call("submit", names=[str(file)])

    def change_run(self, run: RunName, action: Literal["pause", "resume", "cancel"]) -> dict[str, Any]:
        """Pause, resume or cancel a run."""
        return self._call("runs", action, names=[run])

    def tag_runs(self, runs: RunNames, add: list[str] | None = None, remove: list[str] | None = None) -> dict[str, Any]:
        """Add tags to runs, or remove them."""
        given = [*(f"--add={tag}" for tag in add or ()), *(f"--remove={tag}" for tag in remove or ())]
        return self._call("runs", "tag", *given, names=runs)

    def export_run(
        self,
        run: RunName,
        to: Annotated[str, Field(description="A file that does not exist: .onnx, .zip, .xml (OpenVINO), .pte.")],
        precision: Precision = "fp32",
    ) -> dict[str, Any]:
        """Write a finished run as a model file, with the proof that it makes PyTorch's predictions."""
        if Path(to).exists():
            raise BadInput("an assistant does not overwrite files", given=to, do="name another file")
        return self._call("export", f"--to={to}", f"--precision={precision}", names=[run])


READING = ("list_datasets", "inspect_dataset", "list_runs", "show_run", "diff_runs", "doctor")
WRITING = ("submit_run", "change_run", "tag_runs", "export_run")


def mcp(
    write: Annotated[bool, typer.Option("--write", help="Also tools that submit, stop, tag and export runs.")] = False,
    store: StoreOption = MODELS,
) -> None:
    """Serve assistants over stdio (Model Context Protocol). Read-only without --write."""
    extras.require("mcp", WHAT)
    server_of(store.absolute(), write=write).run("stdio")


def server_of(store: Path, *, write: bool) -> Any:
    """The server with its tools.

    Raises:
        MissingExtra: the package `mcp` is not installed.
    """
    serving = extras.load("mcp.server", WHAT)
    errors, types = extras.load("mcp.server.mcpserver.exceptions", WHAT), extras.load("mcp.types", WHAT)
    server, tools = serving.MCPServer("smallalign", instructions=ABOUT, log_level="ERROR"), Tools(store)
    for name in (*READING, *(WRITING if write else ())):
        marks = types.ToolAnnotations(read_only_hint=name in READING, destructive_hint=False, open_world_hint=False)
        server.add_tool(_in_words(getattr(tools, name), errors.ToolError), name=name, annotations=marks)
    return server


def _in_words(tool: Callable[..., dict[str, Any]], failure: type[Exception]) -> Callable[..., dict[str, Any]]:
    """The same; errors are the sentences that the command line prints."""

    @functools.wraps(tool)
    def call(*given: Any, **named: Any) -> dict[str, Any]:
        try:
            return tool(*given, **named)
        except SmallAlignError as error:
            raise failure(str(error)) from None

    return call
