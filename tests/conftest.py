"""What all tests share: a store of their own, digits decoded once, small specs, pages, a browser."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import processes
import psutil
import pytest
import torch
from hypothesis import settings

from smallalign_core import data
from smallalign_core.cli._main import main
from smallalign_core.data import Splits
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import backend, backends, worker
from smallalign_core.service.client import BackendClient
from smallalign_core.spec import DataSpec, RunSpec, parse
from smallalign_core.studies import lifecycle, scaling
from smallalign_core.studies.lifecycle import Study
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system import usercode
from smallalign_core.training.resolve import resolve

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]
USER_FILE = ROOT / "tests" / "fixtures" / "user" / "net.py"
"""A network and a loss as users write them; tests may run it."""
USER_AUGMENT = USER_FILE.with_name("aug.py")
"""A transform, in the same way."""
for _file in (USER_FILE, USER_AUGMENT):
    usercode.trust_here(usercode.read(_file)[1])
settings.register_profile("smallalign", deadline=None)  # how long an example takes depends on the machine
settings.load_profile("smallalign")

OWN = {".git", ".hypothesis", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".import_linter_cache", "__pycache__"}
"""What tools keep in a checkout."""


# --- nothing is left behind -------------------------------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    """Mark what is started here, and give it a temporary folder of its own that goes with the session.

    `tmp_path` stays where pytest puts it.
    """
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        scratch = tempfile.mkdtemp(prefix="sa-")  # short: paths of sockets have 107 bytes
        config.add_cleanup(lambda: shutil.rmtree(scratch, ignore_errors=True))
        os.environ["TMPDIR"], os.environ["SMALLALIGN_DATA"] = scratch, f"{scratch}/data"
        os.environ["SMALLALIGN_STORE"] = f"{scratch}/models"  # where a test names none
        os.environ["SMALLALIGN_TRUSTED"] = f"{scratch}/trusted-python"
        tempfile.tempdir = None
        BEFORE.update(_entries())
    processes.mark()


BEFORE: set[Path] = set()


def _entries() -> set[Path]:
    """Files and folders of the checkout, less what tools keep there."""
    found: set[Path] = set()
    for folder, below, files in os.walk(ROOT):
        below[:] = [name for name in below if name not in {*OWN, ".venv", "node_modules"}]
        found.update(Path(folder, name) for name in (*below, *files))
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remember how long tests took. A session that leaves something in the checkout, or a process, has failed."""
    if hasattr(session.config, "workerinput"):
        return
    if TOOK and (cache := getattr(session.config, "cache", None)):
        cache.set(SECONDS, cache.get(SECONDS, {}) | TOOK)
    left = [str(path.relative_to(ROOT)) for path in sorted(_entries() - BEFORE)]
    controlled = processes.family_of(f"{os.environ[processes.MARK]}/")
    running = [" ".join(one.cmdline()) for one in controlled if one.is_running()]
    processes.end(*controlled)
    for what, some in (("in the checkout", left), ("running", running)):
        if some:
            session.config.get_terminal_writer().line(f"\nThe tests left {what}: {', '.join(some)}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module", autouse=True)
def no_process_left() -> Iterator[None]:
    """What a file starts ends with it."""
    yield
    left = processes.family_of(os.environ[processes.MARK])
    _, left = psutil.wait_procs(left, processes.LIMIT)  # what was told to end may need a minute on a busy machine
    names = [" ".join(process.cmdline()) for process in left if process.is_running()]
    processes.end(*left)
    assert not names, "these processes were left running"


@pytest.fixture(scope="module", autouse=True)
def no_silence_left() -> Iterator[None]:
    """What a file switches off for all loggers, other files would lack."""
    yield
    assert logging.root.manager.disable == logging.NOTSET, "logging.disable() was not taken back"


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Names are resolved only on this machine: a test must not depend on what others serve."""
    resolve, here = socket.getaddrinfo, {"localhost", socket.gethostname(), socket.getfqdn()}

    def local(host: Any, *arguments: Any, **named: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name and name not in here and not re.fullmatch(r"[\d.]+|[\da-fA-F:.%]*:[\da-fA-F:.%\w]*", name):
            raise socket.gaierror(socket.EAI_NONAME, f"tests resolve no names: {name}")
        return resolve(host, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", local)
        yield


SECONDS = "smallalign/seconds"
"""In pytest's cache: how long each test took when it last ran here."""
TOOK: dict[str, float] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    TOOK[report.nodeid] = TOOK.get(report.nodeid, 0.0) + report.duration


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Processes that share the files begin with the longest, so that none is left alone with it in the end.

    How long a file takes is known from the last time that its tests ran; before, it is guessed from their marks.
    """
    if not hasattr(config, "workerinput"):
        return
    cache = getattr(config, "cache", None)  # not there with -p no:cacheprovider
    known: dict[str, float] = cache.get(SECONDS, {}) if cache else {}
    seconds: dict[Path, float] = {}
    for item in items:
        slow = item.get_closest_marker("slow") or item.get_closest_marker("browser")
        seconds[item.path] = seconds.get(item.path, 0.0) + known.get(item.nodeid, 15.0 if slow else 0.3)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Keep what a failed browser test looked like, and say where."""
    report = yield
    if report.failed and item.get_closest_marker("browser"):
        import chromium

        name = re.sub(r"\W+", "-", item.nodeid.removeprefix("tests/"))
        folder = Path(os.environ["PYTEST_DEBUG_TEMPROOT"]) / "smallalign-failures" / f"{name}-{time.time():.0f}"
        chromium.keep_evidence(getattr(item, "funcargs", {}).get("browser"), folder)
        report.sections.append(("browser", f"page, server log and stacks: {folder}"))
    return report


# --- shared -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and thousands of files are flushed: that is a good part of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of decoded images that all tests share."""
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture(scope="session")
def digits(decoded: Path) -> Splits:
    return data.load(DataSpec(source="digits"), decoded)


@pytest.fixture(scope="session")
def few(digits: Splits) -> Splits:
    """Digits with a quarter of the training images: with `batch=32` as many steps an epoch, each a quarter as long."""
    return replace(digits, train=digits.train.take(np.arange(0, len(digits.train), 4)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store that all tests of a file share."""
    return Store(tmp_path_factory.mktemp("place") / "models")


def tiny(**fields: Any) -> RunSpec:
    """A run of about a second."""
    return parse({"data": "digits", "network": {"kind": "cnn", "width": 6, "depth": 2}, "epochs": 3, **fields})


Train = Callable[..., Run]


@pytest.fixture
def train(store: Store) -> Train:
    """Train a tiny run in the test's store and return it."""

    def now(**fields: Any) -> Run:
        run = store.create(resolve(store, tiny(**fields)))
        worker.execute(run, store, device="cpu")
        return run

    return now


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Run]:
    """(store, teacher, student): a finished pair, for tests that only read."""
    place = Store(tmp_path_factory.mktemp("taught") / "models")
    teacher = place.create(resolve(place, tiny(epochs=6)))
    worker.execute(teacher, place, device="cpu")
    student = place.create(resolve(place, tiny(network={"kind": "cnn", "width": 3, "depth": 2}, teacher=teacher.id)))
    worker.execute(student, place, device="cpu")
    return place, teacher, student


@pytest.fixture(scope="session")
def components() -> Any:
    """What Streamlit finds when it reads the metadata of every installed package, as it does for each new page."""
    from streamlit.components.v2.manifest_scanner import scan_component_manifests

    return scan_component_manifests()


@pytest.fixture
def backend_here(components: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are opened without what costs seconds each time and is the same for all of them.

    The backend answers in this process, over the same lines; another one would import torch.
    """

    def exchange(asking: BackendClient, question: str, _request: object, _timeout: float) -> str:
        answered = io.StringIO()
        backend.serve(asking.store, io.StringIO(question), answered)
        return answered.getvalue()

    monkeypatch.setattr("streamlit.components.v2.manifest_scanner.scan_component_manifests", lambda: components)
    monkeypatch.setattr(BackendClient, "_exchange", exchange)
    monkeypatch.setattr(backends.Starter, "__call__", lambda _: pytest.fail("a process was started"))


Show = Callable[..., "AppTest"]


@pytest.fixture
def shown(store: Store, backend_here: None, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Open a page of the test's store: `shown("runs", run=...)`."""
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))

    def show(page: str, **query: str) -> AppTest:
        app = AppTest.from_file(str(ROOT / "pages" / "frame.py"), default_timeout=120).run()
        assert not app.exception
        for name, value in query.items():
            app.query_params[name] = value
        app = app.run() if page == "home" else app.switch_page(f"{page}.py").run()
        assert not app.exception
        return app

    return show


def texts(app: AppTest) -> str:
    """All that is written on a page."""
    said = [*app.title, *app.header, *app.subheader, *app.markdown, *app.caption, *app.text]
    return "\n".join(str(one.value) for one in [*said, *app.info, *app.error, *app.warning, *app.success])


SCALING: dict[str, Any] = {
    "data": "digits",
    "network": {"kind": "mlp", "width": 8, "depth": 1},
    "batch": 64,
    "epochs": 2,
    "precision": "fp32",
    "widths": [4, 8, 16],
    "images": [40, 80, 160],
    "augment": [{"kind": "shift", "pixels": 1}],
    "recipes": ["baseline", "augment"],
    "replicates": 3,
}
"""A scaling study in miniature: 54 runs of a few steps."""


def scaled(store: Store, **changes: Any) -> Study:
    """That study, with changes, untrained."""
    spec = scaling.parse_study(SCALING | changes)
    return lifecycle.create(store, "scaling", resolve_study(store, "scaling", spec, "cpu"))


@pytest.fixture(scope="module")
def finished(place: Store) -> Study:
    """It, trained."""
    study = scaled(place)
    assert not lifecycle.run_to_end(study, place, device="cpu")
    return study


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium."""
    import chromium
    from playwright.sync_api import sync_playwright

    if (found := chromium.executable()) is None:
        pytest.skip("needs Chromium: install it, or name it in CHROMIUM")
    with sync_playwright() as playwright:
        opened = chromium.launched(playwright, found)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def site(place: Store) -> Iterator[str]:
    """The address of a dashboard over the file's store."""
    import chromium

    environment = {"SMALLALIGN_STORE": str(place.root), "OMP_NUM_THREADS": "1"}
    with chromium.dashboard(place.root.parent / "server.log", environment=environment) as address:
        yield address


def command(*arguments: object, store: Store | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, which has torch imported already."""
    given, out, err = _given(arguments, store), io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    log, logged = logging.getLogger(), (list(logging.getLogger().handlers), logging.getLogger().level)
    try:
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(given)
    finally:
        torch.set_num_threads(1)
        log.handlers[:] = logged[0]
        log.setLevel(logged[1])
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(given, code, out.getvalue(), err.getvalue())


def program(*arguments: object, store: Store | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would, in a process of its own: two seconds of importing each time."""
    line = processes.python("-m", "smallalign_core", *_given(arguments, store))
    return processes.run(line, timeout=timeout)


def _given(arguments: tuple[object, ...], store: Store | None) -> list[str]:
    return [*map(str, arguments), *(["--store", str(store.root)] if store else [])]
