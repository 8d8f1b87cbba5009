"""No request to a host that was not named: what libraries report by themselves is off, and no name is looked up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_teachers import graph

from smallalign_core.runs.store import Store
from smallalign_core.service import doctor
from smallalign_core.system import sandbox
from smallalign_core.system.telemetry import SILENT

SESSION = """
import sys, time
names = []
def looked(event, given):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto"):
        names.append((event, str(given[0])))
    if event == "socket.connect" and not str(given[1]).startswith(("('127.0.0.1'", "('::1'", "/")):
        names.append((event, str(given[1])))
sys.addaudithook(looked)
from smallalign_core.cli._main import main
folder, store = sys.argv[1:]
def verb(*given, code=0):
    found = main([*given, "--store", store])
    assert found == code, (given, found)
spec = "models/zoo/digits-student/spec.yaml"
small = ["--set", "epochs=1", "--set", "network.width=2"]
verb("datasets"); verb("inspect", "digits"); verb("preflight", "digits-teacher")
verb("train", spec, *small); verb("submit", spec, *small, "--set", "seed=9")
verb("worker", "--once"); verb("runs", "list")
verb("compare", "digits-teacher", "digits-student"); verb("evaluate", "digits-student")
verb("import", folder + "/m.onnx", "--data", "digits")
for precision in ("fp32", "int8"):
    verb("export", "digits-student", "--to", folder + "/e.onnx", "--precision", precision)
    verb("verify", folder + "/e.onnx")
verb("doctor")
time.sleep(1)  # a report would be sent by a thread of its own
assert not names, names
"""


def session(folder: Path, *before: str) -> subprocess.CompletedProcess[str]:
    """Every command, in a process whose home is empty, with telemetry that somebody switched on."""
    folder.mkdir(exist_ok=True)
    (folder / "m.onnx").write_bytes(graph(names=list("0123456789")))
    kept = {name: value for name, value in os.environ.items() if name not in (*SILENT, "CI")}
    home = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "ORT_DISABLE_TELEMETRY": "0"}
    command = [*before, sys.executable, "-c", SESSION, str(folder), str(folder / "models")]
    return subprocess.run(command, cwd=ROOT, env=kept | home, capture_output=True, text=True, timeout=3000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_command_looks_up_another_host(tmp_path: Path) -> None:
    """With strace also what native code does, in every process that is started."""
    trace = tmp_path / "trace"
    there = shutil.which("strace")
    before = [there, "-f", "-qq", "-e", "trace=network", "-o", str(trace)] if there else []
    done = session(tmp_path, *before)
    if there and "ptrace" in done.stderr and done.returncode:  # not allowed in this container
        done = session(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.rglob("*Microsoft*")), "where ONNX Runtime queues its reports"
    for line in trace.read_text().splitlines() if trace.exists() else ():
        if re.search(r"\b(connect|sendto|sendmsg|sendmmsg)\(.*AF_INET", line):
            assert re.search(r'"127\.0\.0\.1"|"::1"|EPERM', line), line
    if not trace.exists():
        print("NOT TESTED: look-ups by native code; strace is not here")  # noqa: T201


def test_the_package_switches_reports_off_before_anything_else(tmp_path: Path) -> None:
    """In the process, whatever was set, and in the jail, which starts with an environment of its own."""
    code = (
        "import os; from smallalign_core.system.telemetry import SILENT; "
        "print(all(os.environ[k] == v for k, v in SILENT.items()))"
    )
    loud = os.environ | {"ORT_DISABLE_TELEMETRY": "0", "RAY_USAGE_STATS_ENABLED": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=loud, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert SILENT.items() <= sandbox._child({}, sandbox.LIMITS)["env"].items()


def test_importing_the_package_loads_nothing_that_reports() -> None:
    code = "import sys, smallalign_core; print([m for m in ('torch', 'onnxruntime', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_doctor_and_the_download_say_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._silence().ok
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert not doctor._silence().ok
    assert "ORT_DISABLE_TELEMETRY" in doctor._silence().found
    snippet = (ROOT / "smallalign_core/export/snippets/classify.py").read_text()
    assert snippet.index("ORT_DISABLE_TELEMETRY") < snippet.index("import onnxruntime")
