"""The server for assistants, by the real client of the package `mcp` over stdio."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, command

from smallalign_core.cli import mcp as mcp_verb
from smallalign_core.cli.mcp import READING, WRITING
from smallalign_core.errors import WorkFailed
from smallalign_core.runs.store import Store
from smallalign_core.system import extras

if not extras.installed("mcp"):
    pytest.skip(f"mcp is not installed here: {extras.command('mcp')}", allow_module_level=True)

from mcp import Client, StdioServerParameters


def served(store: Store, *more: str, use: Callable[[Any], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        line = ["-m", "smallalign_core", "mcp", "--store", str(store.root), *more]
        async with Client(
            StdioServerParameters(command=sys.executable, args=line, cwd=ROOT, env=dict(os.environ))
        ) as client:
            return await use(client)

    return asyncio.run(go())


async def call(client: Any, tool: str, **given: Any) -> dict[str, Any]:
    found = await client.call_tool(tool, given)
    text = found.content[0].text
    return {"error": text} if found.is_error else json.loads(text)


def test_without_write_there_are_tools_that_read_and_they_say_what_the_commands_say(store: Store) -> None:
    async def use(client: Any) -> Any:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        return (
            tools,
            await call(client, "show_run", run="digits-student"),
            await call(client, "list_runs", filter="digits"),
            await call(client, "show_run", run="none"),
            await call(client, "show_run", run="--help"),
            await call(client, "inspect_dataset", data="hf://a/b"),
            await call(client, "inspect_dataset", data="cifar100"),
            await client.call_tool("submit_run", {"spec": {}}),
        )

    tools, shown, listed, none, option, far, large, absent = served(store, use=use)
    assert set(tools) == set(READING)
    assert all(tool.annotations.read_only_hint and tool.description for tool in tools.values())
    assert tools["show_run"].input_schema["properties"]["run"]["type"] == "string"
    assert tools["show_run"].input_schema["required"] == ["run"]
    assert shown == json.loads(command("runs", "show", "digits-student", store=store).stdout)
    assert {run["id"] for run in listed["runs"]} == {
        run["id"] for run in json.loads(command("runs", "list", "--json", store=store).stdout)["runs"]
    }
    assert "none" in none["error"]
    assert "Traceback" not in none["error"]
    assert "--help" in option["error"], "a name is never an option"
    assert "does not download" in far["error"]
    assert "does not download datasets (given: cifar100)" in large["error"]
    assert absent.is_error


def test_with_write_long_work_is_queued_and_its_id_comes_at_once(store: Store, tmp_path: Path) -> None:
    mine = tmp_path / "mine.onnx"
    mine.write_text("mine")

    async def use(client: Any) -> Any:
        names = {tool.name for tool in (await client.list_tools()).tools}
        made = await call(client, "submit_run", spec={"data": "digits", "network": {"kind": "cnn", "width": 4}})
        return (
            names,
            made,
            await call(client, "change_run", run=made["id"], action="pause"),
            await call(client, "tag_runs", runs=[made["id"]], add=["assistant"]),
            await call(client, "submit_run", spec={"data": "digits", "network": {"kind": "python", "file": "/x.py"}}),
            await call(client, "submit_run", spec={"data": {"source": "/x", "reader": "/x.py"}, "network": "mlp"}),
            await call(client, "submit_run", spec={"data": "hf://a/b", "network": "mlp"}),
            await call(client, "submit_run", spec={"data": "digits", "network": {"kind": "cnn", "width": -4}}),
            await call(client, "export_run", run="digits-student", to=str(mine)),
            await call(client, "change_run", run=made["id"], action="delete"),
        )

    names, made, _, tagged, python, reader, far, bad, over, deleted = served(store, "--write", use=use)
    assert names == {*READING, *WRITING}
    assert made["state"] == "queued"
    assert str(store.run(made["id"]).state) == "paused"
    assert tagged["runs"][0]["tags"] == ["assistant"]
    assert "Python files" in python["error"]
    assert "Python files" in reader["error"], "in every form in which a spec may name one"
    assert "does not download" in far["error"]
    assert "width" in bad["error"]
    assert "does not overwrite" in over["error"]
    assert mine.read_text() == "mine"
    assert "error" in deleted
    assert store.run(made["id"])


def test_a_call_that_takes_too_long_ends_with_all_that_it_started(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(999)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n"
        "time.sleep(999)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for seconds in (2, 20, 200):
        monkeypatch.setattr(mcp_verb, "LONGEST", seconds)
        with pytest.raises(WorkFailed, match=f"took more than {seconds} seconds"):
            mcp_verb.Tools(store.root).list_datasets()
        if pid.exists():
            break
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(pid.read_text())).wait(60)
