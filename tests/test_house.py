"""The house: contracts that keep it simple."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import processes
import pytest
from conftest import ROOT

CORE = sorted((ROOT / "smallalign_core").rglob("*.py"))
PAGES = sorted((ROOT / "pages").rglob("*.py"))
MOST_LINES = 460
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}


def test_there_is_something_to_check() -> None:
    assert len(CORE) > 20
    assert len(PAGES) > 6


def test_one_training_loop() -> None:
    calls = [file for file in CORE for line in file.read_text().splitlines() if re.search(r"\.backward\(", line)]
    assert [file.name for file in calls] == ["loop.py"]


@pytest.mark.parametrize("file", [*CORE, *PAGES], ids=lambda file: str(file.relative_to(ROOT)))
def test_files_are_read_in_one_sitting_and_say_what_they_are(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    assert file.stem not in FORBIDDEN_NAMES
    assert ast.get_docstring(ast.parse(text)), "a module opens with the sentence that says what it is for"
    assert not re.search(r"^class \w*(Manager|Helper|Handler|Utils)\b", text, re.MULTILINE)


def test_the_folder_of_a_run_is_named_in_one_place() -> None:
    """`Store.by_id`; the queue, which lies below the store in the layers, globs below its root."""
    found = {str(file.relative_to(ROOT)) for file in (*CORE, *PAGES) if re.search(r'/ "runs"', file.read_text())}
    assert found == {"smallalign_core/runs/store/__init__.py"}


SILENT: dict[str, str] = {}
"""File and function of a `case _` that may go on, and why: a match over values that nobody lists."""


def silent_defaults(text: str) -> list[str]:
    """The functions with a `case _` that neither raises nor is `assert_never`: a new member falls through unnoticed."""
    found = []
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.match_case) and ast.unparse(node.pattern) == "_" and node.guard is None:
                    first = ast.unparse(node.body[0])
                    if not first.startswith(("raise ", "assert_never(")):
                        found.append(function.name)
    return found


@pytest.mark.parametrize("file", [*CORE, *PAGES], ids=lambda file: str(file.relative_to(ROOT)))
def test_no_match_has_a_silent_default(file: Path) -> None:
    here = file.relative_to(ROOT)
    assert not [name for name in silent_defaults(file.read_text()) if f"{here}:{name}" not in SILENT]


def test_a_silent_default_is_noticed() -> None:
    text = "def f(x):\n    match x:\n        case 1:\n            return 1\n        case _:\n            {}\n"
    assert silent_defaults(text.format("return 2")) == ["f"]
    assert not silent_defaults(text.format("assert_never(x)"))
    assert not silent_defaults(text.format("raise ValueError(x)"))


@pytest.mark.parametrize("file", sorted((ROOT / "pages").glob("*.py")), ids=lambda file: file.name)
def test_pages_are_thin(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 150


def test_every_requirement_is_pinned() -> None:
    for name in ("requirements.txt", "tests/requirements.txt"):
        for line in (ROOT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line), f"{name}: {line}"


def test_nothing_third_party_is_committed() -> None:
    listed = processes.run(["git", "ls-files"])
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = listed.stdout.splitlines()
    allowed_binaries = {
        "models/zoo/digits-teacher/weights.safetensors",
        "models/zoo/digits-student/weights.safetensors",
    }
    for name in files:
        assert "node_modules" not in name
        assert not name.endswith((".wasm", ".min.js", ".min.mjs", ".whl", ".onnx", ".pt", ".zip"))
        if b"\x00" in (ROOT / name).read_bytes()[:4096] and not name.endswith(".png"):
            assert name in allowed_binaries, f"{name} is binary"


@pytest.mark.slow
def test_the_server_process_stays_light() -> None:
    """Importing every page's imports must not bring torch, onnx, onnxruntime or scikit-learn."""
    code = f"""
import ast, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
for file in sorted(pathlib.Path({str(ROOT / "pages")!r}).rglob("*.py")):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            __import__(node.module)
        elif isinstance(node, ast.Import):
            for name in node.names:
                __import__(name.name)
print(sorted({{"torch", "torchvision", "onnx", "onnxruntime", "sklearn"}} & set(sys.modules)))
"""
    done = processes.run(processes.python("-c", code))
    assert done.stdout.strip().splitlines()[-1:] == ["[]"], done.stderr
