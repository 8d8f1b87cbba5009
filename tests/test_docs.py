"""The documents are true: links, anchors, paths, commands, specs, code, tables and the generated reference."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import processes
import pytest
import yaml
from conftest import ROOT

import smallalign_core as sa
from smallalign_core.spec import parse
from smallalign_core.spec._part import Part
from smallalign_core.studies import optimizers, scaling

DOCS = ROOT / "docs"
BESIDE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "Dockerfile", "LICENSE", "pyproject.toml")
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.rglob("*.md"))]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def of(files: list[Path]) -> Any:
    return pytest.mark.parametrize("file", files, ids=lambda file: str(file.relative_to(ROOT)))


def blocks(file: Path, *languages: str) -> list[str]:
    """The fenced code blocks of a document in these languages; "" is none."""
    return [text for language, text in FENCE.findall(file.read_text()) if language in languages]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = script("generate")


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    pages: dict[str, str] = generate.pages()
    return pages


# --- links and paths --------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors of a page, as GitHub and mkdocs make them of its headings."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", head.lower()).strip()) for head in heads}


@of(FILES)
def test_every_link_leads_somewhere(file: Path, reference: dict[str, str]) -> None:
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", file.read_text()))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        place = (file.parent / path).resolve() if path else file
        made = reference.get(str(place.relative_to(DOCS))) if place.is_relative_to(DOCS) else None
        assert made or place.exists(), f"{target} is linked in {file.name} and does not exist"
        if anchor:
            assert anchor in anchors(made or place.read_text()), f"{target} in {file.name}: no such heading"


@of(FILES)
def test_every_path_is_on_the_disk(file: Path) -> None:
    """As written, or below a folder of the library, the dashboard or the tests."""
    text = re.sub(r"^    .*$", "", FENCE.sub("", file.read_text()), flags=re.MULTILINE)
    paths = re.findall(r"`([a-z_.-]+(?:/[a-z_.0-9-]+)+|[A-Za-z_.-]+\.(?:py|md|toml|txt))`", text)
    paths += re.findall(r"(?:`|python |pytest )((?:benchmarks|tests|docs)/\w+\.py)", file.read_text())
    places = (ROOT, ROOT / "smallalign_core", ROOT / "pages" / "ui", ROOT / "tests", ROOT / "tests" / "faults")
    for path in paths:
        if path.startswith(("models/", ".streamlit/")) or path in MADE_BY_COMMANDS:
            continue
        assert any((place / path).exists() for place in places), f"{path} is in {file.name} and not on the disk"


MADE_BY_COMMANDS = {"log.txt", "names.txt", "classes.txt", "class_names.txt", "labels.txt", "classify.py"}
"""Files that a user has or a command writes, wherever that is."""


def test_the_readme_is_short_and_its_tree_is_on_the_disk() -> None:
    assert len(README.splitlines()) <= 200
    block = README.split("## The tree")[1].split("```")[1]
    paths = re.findall(r"^(\S+)\s{2,}\S", block, re.MULTILINE)
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists(), f"{path} is in the README's tree and not on the disk"
    for module in (ROOT / "smallalign_core").iterdir():
        if module.name not in ("__init__.py", "__main__.py", "__pycache__", "py.typed"):
            assert f"smallalign_core/{module.name}" in block or f"smallalign_core/{module.name}/" in block, module.name


@pytest.mark.parametrize("folder", ["decisions", "results"])
def test_every_record_is_in_its_index(folder: str) -> None:
    files = sorted(file.name for file in (DOCS / folder).glob("*.md") if file.name != "index.md")
    listed = re.findall(r"\]\(([^)/]+\.md)\)", (DOCS / folder / "index.md").read_text())
    assert sorted(listed) == files
    if folder == "decisions":
        assert [int(name[:4]) for name in files] == list(range(1, len(files) + 1))


def test_every_page_of_the_dashboard_has_its_two_small_screenshots() -> None:
    for page in sorted((ROOT / "pages").glob("*.py")):
        for theme in ("light", "dark"):
            if page.stem != "frame":
                picture = DOCS / "img" / f"{page.stem}-{theme}.png"
                assert picture.exists(), f"python docs/screenshots.py {page.stem}"
                assert picture.stat().st_size < 150_000, picture


@pytest.mark.parametrize("name", ["", "tests/", "docs/"])
def test_every_requirement_has_its_reason(name: str) -> None:
    table = (DOCS / "reference" / "dependencies.md").read_text()
    lines = (ROOT / f"{name}requirements.txt").read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith(("#", "-r")):
            assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", line), line
            if not name:
                assert re.search(rf"^\| `{re.escape(line.split('==')[0])}`", table, re.MULTILINE), line
            if name == "docs/":
                assert before.startswith(("# ", "mkdocstrings==")), f"say why {line} is here"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+)(?: [a-z ]+)?:", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {
        "fast",
        "bench",
    }
    for file in FILES:
        assert set(re.findall(r"(?:^    |`)make ([a-z]+)", file.read_text(), re.MULTILINE)) <= targets


def test_no_host_or_path_of_a_developer_is_named() -> None:
    for file in [
        *FILES,
        *DOCS.glob("*.py"),
        *(ROOT / name for name in ("Makefile", "mkdocs.yml", *BESIDE)),
        *(ROOT / "smallalign_core").rglob("*.py"),
        *(ROOT / "pages").rglob("*.*"),
    ]:
        if "node_modules" in file.parts or file.suffix in (".pyc", ".gz") or not file.is_file():
            continue
        text = file.read_text(errors="replace")
        assert not re.search("/(work|root)/", text), file


@of(FILES)
def test_the_words_are_the_fields(file: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", file.read_text()))
    if file.parent == DOCS or DOCS in file.parents or file.name == "README.md":
        old = re.search(r"\b(desk|jail|shelf|bank|pupil|worth|judge[sd]?|seal(ed)?|classmates)\b", text, re.IGNORECASE)
        assert not old, f"{old[0]} in {file.name}"


# --- commands and code ------------------------------------------------------------------------------------------------

PROGRAM = re.compile(r"(?:^|\s)(?:[A-Z_]+=\S+ )*(?:smallalign|(?:python )?-m smallalign_core) ([a-z-].*)")


def lines_of_commands() -> Iterator[tuple[str, str]]:
    for file in FILES:
        text = file.read_text()
        shown = [line for block in blocks(file, "", "bash") for line in block.splitlines()]
        shown += re.findall(r"^    (.+)$", FENCE.sub("", text), re.MULTILINE)
        shown += [one for one in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)) if " " in one]
        for line in shown:
            if found := PROGRAM.search(line):
                yield str(file.relative_to(ROOT)), found[1].split("  #")[0].split(" # ")[0].strip()


@pytest.mark.slow
@pytest.mark.parametrize(("where", "line"), sorted(set(lines_of_commands())))
def test_every_command_exists_with_its_options(where: str, line: str) -> None:
    words = shlex.split(line.split(" -- ")[0])
    group = generate.program()
    command = group.commands.get(words.pop(0))
    assert command, f"`{line}` in {where}: no such command"
    if hasattr(command, "commands") and words and not words[0].startswith("-"):
        command = command.commands.get(words.pop(0))
        assert command, f"`{line}` in {where}: no such command"
    options = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in options, f"`{line}` in {where}: no option {word}"


def test_there_are_commands_to_check() -> None:
    assert len(set(lines_of_commands())) > 40


@of(FILES)
def test_every_block_of_settings_is_valid(file: Path) -> None:
    for text in blocks(file, "yaml"):
        fields = yaml.safe_load(text)
        kind = optimizers if "optimizers" in fields else scaling if "recipes" in fields else None
        kind.parse_study(fields) if kind else parse(fields)
    for text in blocks(file, "toml"):
        assert tomllib.loads(text)
    for text in blocks(file, "json"):
        json.loads(text)


def cells(notebook: Path) -> list[str]:
    found = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@of([*FILES, *NOTEBOOKS])
def test_every_block_of_python_compiles_and_finds_its_names(file: Path) -> None:
    for text in cells(file) if file in NOTEBOOKS else blocks(file, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("smallalign_core"):
                for name in node.names:
                    module = importlib.import_module(node.module)
                    assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}")
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sa":
                assert hasattr(sa, node.attr), f"sa.{node.attr} in {file.name}"


def outside(tmp_path: Path, *arguments: object) -> None:
    """Run Python in an empty folder, as a reader would."""
    environment = {"PYTHONPATH": str(ROOT), "SMALLALIGN_STORE": str(tmp_path / "models"), "OMP_NUM_THREADS": "1"}
    processes.run(processes.python(*arguments), cwd=tmp_path, environment=environment, timeout=500, check=True)


@pytest.mark.slow
def test_the_first_tutorial_works_as_written(tmp_path: Path) -> None:
    tutorial = DOCS / "tutorial" / "first-student.md"
    (spec,) = blocks(tutorial, "yaml")
    assert "epochs: 30\n" in spec
    (tmp_path / "spec.yaml").write_text(spec.replace("epochs: 30\n", "epochs: 2\n"))  # a minute less, the same commands
    lines = [line for block in blocks(tutorial, "") for line in block.splitlines() if line.startswith("smallalign ")]
    assert len(lines) > 7
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] != "dashboard":
            outside(tmp_path, "-m", "smallalign_core", *words)


@pytest.mark.slow
@of(NOTEBOOKS)
def test_every_notebook_runs(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text("\n\n".join(cells(file)))
    outside(tmp_path, "cells.py")
    assert file.stat().st_size < 50_000


# --- the reference ----------------------------------------------------------------------------------------------------


def test_the_reference_has_every_command_and_option(reference: dict[str, str]) -> None:
    text = reference["reference/commands.md"]
    for name, command in generate.listed(generate.program()):
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for one in command.params:
            if one.param_type_name == "option" and not one.hidden and one.name != "help":
                assert all(f"`{flag}`" in section for flag in one.opts), (name, one.opts)
                assert one.help, f"{name} {one.opts}: say what it does"


def every(part: type[Part]) -> Iterator[type[Part]]:
    for one in part.__subclasses__():
        yield one
        yield from every(one)


def test_the_reference_has_every_spec_class_and_field(reference: dict[str, str]) -> None:
    families = generate.families()
    listed = {one for classes in families.values() for one in classes}
    leaves = {one for one in every(Part) if one.__module__.startswith("smallalign_core.") and not one.__subclasses__()}
    missing = {one.__name__ for one in leaves - listed} - {"Policy"}  # a file of transforms, no part of a spec
    assert not missing, "add it to the union of its family, or to `families` of docs/generate.py"
    for title, classes in families.items():
        family = reference["reference/specs.md"].split(f"\n## {title}\n")[1].split("\n## ")[0]
        for one in classes:
            head = one.model_fields["kind"].default if "kind" in one.model_fields else one.__name__
            section = family.split(f"\n### {head}\n")[1].split("\n### ")[0]
            for name in set(one.model_fields) - {"kind"}:
                assert f"| `{name}` |" in section, (one.__name__, name)


def test_the_reference_has_the_public_python_names(reference: dict[str, str]) -> None:
    text = reference["reference/python.md"]
    for name in sa.__all__:
        assert f"::: smallalign_core.{name}\n" in text
    for package in generate.PACKAGES:
        assert generate.names(package), package
        for name in generate.names(package):
            assert inspect.getdoc(getattr(importlib.import_module(package), name)), f"{package}.{name}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        if os.environ.get("CI"):
            pytest.fail("mkdocs is not installed: tests/requirements.txt names docs/requirements.txt", pytrace=False)
        pytest.skip("mkdocs is not installed here: pip install -r docs/requirements.txt")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = processes.run(line, environment={"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    for page in generate.pages():
        assert (tmp_path / "site" / page.removesuffix(".md") / "index.html").exists()


def test_every_environment_variable_is_documented(reference: dict[str, str]) -> None:
    source = [*(ROOT / "smallalign_core").rglob("*.py"), *(ROOT / "pages").rglob("*.py")]
    used = {name for file in source for name in re.findall(r"\bSMALLALIGN_[A-Z_]*[A-Z]\b", file.read_text())}
    text = (DOCS / "how-to" / "configure.md").read_text() + reference["reference/limits.md"]
    assert {name for name in used if f"`{name}`" not in text} == set()
