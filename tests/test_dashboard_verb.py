"""`smallalign dashboard`: what it starts, and what it refuses; `tests/test_installed.py` starts it from the wheel."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import chromium
import pytest
from conftest import ROOT, command

from pages.ui.browser import _npm
from smallalign_core.cli import dashboard as verb
from smallalign_core.runs.store import Store
from smallalign_core.system import extras


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What would be started, with its environment."""
    found: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(verb, "_replace", lambda words, environment, **_: found.append((words, dict(environment))))
    return found


def test_it_starts_streamlit_in_the_callers_folder(
    started: list[Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SMALLALIGN_STORE")
    port = chromium.free_port()
    done = command("dashboard", "--port", port, "--json", "--", "--server.baseUrlPath=lab", store=None)
    assert done.returncode == 0, done.stderr
    [(words, environment)] = started
    app = str(ROOT / "app.py")
    assert words == [
        sys.executable, "-P", "-m", "streamlit", "run", app, f"--server.port={port}", "--server.baseUrlPath=lab",
    ]  # fmt: skip
    assert "SMALLALIGN_STORE" not in set(environment) - set(os.environ)
    told = json.loads(done.stdout)
    assert told == {"url": f"http://localhost:{port}", "store": str(ROOT / "models"), "folder": str(ROOT)}
    assert command("dashboard", "--port", port, store=store).returncode == 0
    assert started[1][1]["SMALLALIGN_STORE"] == str(store.root)


def test_a_port_that_is_taken_is_refused_in_a_sentence(started: list[Any]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = command("dashboard", "--port", port)
    assert (done.returncode, started) == (2, [])
    assert done.stderr == f"The port is in use (given: {port}). Choose another with --port.\n"
    assert command("dashboard", "--port", 70_000).returncode == 2


def test_settings_of_the_callers_folder_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two files Streamlit lets the one beside app.py win; here that is the package's own."""
    monkeypatch.chdir(tmp_path)
    assert verb._own_settings(ROOT) == []
    (tmp_path / ".streamlit").mkdir()
    (tmp_path / ".streamlit" / "config.toml").write_text(
        '[server]\naddress = "127.0.0.2"\nallowedHosts = ["one", "two"]\nrunOnSave = true\nport = 99\n'
        '[theme.dark]\ntextColor = "#fff"\n'
    )
    assert sorted(verb._own_settings(ROOT)) == [
        "--server.address=127.0.0.2",
        "--server.allowedHosts=one",
        "--server.allowedHosts=two",
        "--server.runOnSave=true",
        "--theme.dark.textColor=#fff",
    ]
    (tmp_path / ".streamlit" / "config.toml").write_text("[server\n")
    with pytest.raises(verb.BadInput, match=r"^Streamlit's settings cannot be read \(given: .streamlit/config.toml: "):
        verb._own_settings(ROOT)
    monkeypatch.chdir(ROOT)
    assert verb._own_settings(ROOT) == [], "it is our own file"


def test_an_installation_without_pages_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "PACKAGE", tmp_path / "smallalign_core")
    with pytest.raises(verb.WorkFailed, match="This installation does not include the dashboard"):
        verb.app_folder()
    (tmp_path / "smallalign_dashboard" / "pages").mkdir(parents=True)
    for name in ("app.py", "pages/frame.py"):
        (tmp_path / "smallalign_dashboard" / name).write_text("")
    assert verb.app_folder() == tmp_path / "smallalign_dashboard"


# --- where npm installs -----------------------------------------------------------------------------------------------


def test_a_checkout_installs_beside_its_lock_file_and_a_wheel_into_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert _npm.located(_npm.HERE, checkout=True) == _npm.Packages(_npm.HERE)
    installed = _npm.located(_npm.HERE, checkout=False)
    assert installed.folder.parent == tmp_path / "cache" / "smallalign"
    assert installed.source == _npm.HERE
    assert installed.versions == _npm.PACKAGES.versions
    assert not installed.installed()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert _npm.located(_npm.HERE, checkout=True) == installed, "a checkout that only others may write to"


def test_an_installation_in_the_cache_brings_its_lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = _npm.Packages(tmp_path / "new" / "place", _npm.HERE)
    seen: list[Path] = []

    def npm(*_: Any, cwd: Path, **__: Any) -> Any:
        seen.extend(sorted(cwd.iterdir()))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_npm.subprocess, "run", npm)
    with pytest.raises(_npm.InstallError, match="No space left on device"):
        packages.install()
    assert {file.name for file in seen} >= {"package.json", "package-lock.json"}
