"""The README is true: its tree is on the disk, its requirements are explained, its commands exist."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import ROOT

from smallalign_core.cli._main import app, runs_app

README = (ROOT / "README.md").read_text()
BESIDE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "Dockerfile", "LICENSE", "pyproject.toml")


def test_the_tree_is_on_the_disk() -> None:
    block = README.split("## The tree")[1].split("```")[1]
    paths = re.findall(r"^(\S+)\s{2,}\S", block, re.MULTILINE)
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists(), f"{path} is in the README's tree and not on the disk"
    for module in (ROOT / "smallalign_core").iterdir():
        if module.name not in ("__init__.py", "__main__.py", "__pycache__"):
            assert f"smallalign_core/{module.name}" in block or f"smallalign_core/{module.name}/" in block, module.name


def test_every_requirement_has_its_reason() -> None:
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.search(rf"^\| `{re.escape(line.split('==')[0])}`", README, re.MULTILINE), line


@pytest.mark.parametrize(
    "line", sorted(set(re.findall(r"^\s*(?:\$ )?python -m smallalign_core (.+)$", README, re.MULTILINE)))
)
def test_every_command_in_the_readme_exists(line: str) -> None:
    verbs = {
        command.name or command.callback.__name__.rstrip("_") for command in app.registered_commands if command.callback
    }
    words = shlex.split(line.split("  #")[0])
    assert words[0] in verbs | {"runs"}
    if words[0] == "runs" and len(words) > 1 and words[1].isalpha():
        assert words[1] in {command.name for command in runs_app.registered_commands}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_path_in_the_other_documents_is_on_the_disk(name: str) -> None:
    """As written, or below the folder of a module that was named in the same document."""
    text = (ROOT / name).read_text()
    paths = re.findall(r"`([a-z_.]+(?:/[a-z_.]+)+|[A-Za-z_.-]+\.(?:py|md|toml|txt))`", text)
    assert paths
    for path in (path for path in paths if path not in (".streamlit/config.toml", ".streamlit/secrets.toml")):
        places = (ROOT, ROOT / "smallalign_core", ROOT / "pages" / "ui")
        assert any((place / path).exists() for place in places), f"{path} is in {name} and not on the disk"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+)(?: [a-z ]+)?:", (ROOT / "Makefile").read_text(), re.MULTILINE)) | {
        "fast",
        "bench",
    }
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        assert set(re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_no_host_or_path_of_a_developer_is_named() -> None:
    for file in [
        *(ROOT / name for name in ("README.md", "Makefile", *BESIDE)),
        *(ROOT / "smallalign_core").rglob("*.py"),
        *(ROOT / "pages").rglob("*.*"),
    ]:
        if "node_modules" in file.parts or file.suffix in (".pyc", ".gz") or not file.is_file():
            continue
        text = file.read_text(errors="replace")
        assert not re.search("/(work|root)/", text), file
