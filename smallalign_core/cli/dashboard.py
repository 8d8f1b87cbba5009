"""The command `dashboard`: Streamlit with the pages of a checkout or of an installed wheel."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from smallalign_core.cli._shared import MODELS, JsonOption, StoreOption, answer
from smallalign_core.errors import BadInput, Refused, WorkFailed
from smallalign_core.system import extras

SETTINGS = Path(".streamlit") / "config.toml"


def dashboard(
    port: Annotated[int, typer.Option("--port", min=1, max=65_535, help="Port to listen on.")] = 8501,
    setup: Annotated[bool, typer.Option("--setup", help="Install the browser parts (npm packages) and exit.")] = False,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Options of `streamlit run`, after --.")
    ] = None,
    store: StoreOption = MODELS,
    json: JsonOption = False,
) -> None:
    """Start the dashboard; its store is `models` in the current folder. Ctrl-C stops it; training continues."""
    extras.require("streamlit", "the dashboard")
    folder = app_folder()
    if setup:
        code = subprocess.call([sys.executable, "-m", "pages.ui.browser"], cwd=folder, stdout=sys.stderr)
        if code:
            raise typer.Exit(code)
        answer({"installed": True}, json, "The browser parts are installed.")
        return
    _check_free(port)
    place = store.expanduser().resolve()
    found = {"url": f"http://localhost:{port}", "store": str(place), "folder": str(folder)}
    command = [sys.executable, "-P", "-m", "streamlit", "run", str(folder / "app.py"), f"--server.port={port}"]
    # The default store stays the relative path `models`: short in links and captions.
    environment = os.environ | ({} if store == MODELS else {"SMALLALIGN_STORE": str(place)})
    if json:
        answer(found, json, "")
        sys.stdout.flush()
    _replace([*command, *_own_settings(folder), *(options or ())], environment, quiet=json)


def app_folder() -> Path:
    """The folder with app.py and pages/.

    Raises:
        WorkFailed: this installation does not include the dashboard.
    """
    site = extras.PACKAGE.parent
    for folder in (site / "smallalign_dashboard", site):  # of a wheel, of a checkout
        if (folder / "app.py").is_file() and (folder / "pages" / "frame.py").is_file():
            return folder
    raise WorkFailed(
        "this installation does not include the dashboard", given=site, do="install smallalign from its wheel"
    )


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = "needs elevated privileges" if error.errno == errno.EACCES else "is in use"
            raise Refused(f"the port {reason}", given=port, do="choose another with --port") from None


def _own_settings(folder: Path) -> list[str]:
    """The settings of ./.streamlit/config.toml that differ from ours, as flags: the file beside app.py would win.

    Raises:
        BadInput: that file is not TOML.
    """
    if not SETTINGS.is_file() or SETTINGS.resolve() == (folder / SETTINGS).resolve():
        return []
    try:
        theirs = dict(_flat(tomllib.loads(SETTINGS.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise BadInput(
            "Streamlit's settings cannot be read", given=f"{SETTINGS}: {error}", do="correct the file"
        ) from None
    ours = dict(_flat(tomllib.loads((folder / SETTINGS).read_text(encoding="utf-8"))))
    return [
        f"--{name}={str(one).lower() if isinstance(one, bool) else one}"
        for name in ours.keys() & theirs.keys()
        for one in (theirs[name] if isinstance(theirs[name], list) else [theirs[name]])
    ]


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _replace(command: list[str], environment: Mapping[str, str], *, quiet: bool) -> None:
    """Replace this process, so that signals reach the new one; on Windows run it and wait."""
    if os.name == "nt":
        raise typer.Exit(subprocess.call(command, env=environment, stdout=sys.stderr if quiet else None))
    if quiet:
        os.dup2(2, 1)  # stdout holds the JSON object only
    os.execve(command[0], command, environment)
