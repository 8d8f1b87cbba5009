"""How long a rerun of each page takes with an empty store and with 200 runs, and what the server process weighs.

    python benchmarks/pages.py [--runs 200] [--repeats 7]

Reruns are timed in this process through streamlit's AppTest, which does all that a server does but send the result.
Memory and loaded modules are those of a real server that a client has visited. What is promised: under 300 ms, under
300 MB, no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil
from streamlit.testing.v1 import AppTest

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose own `pages.py` would hide the package

from pages.ui.app import context
from smallalign_core.runs.store import Store
from smallalign_core.spec import digest

PAGES = ("home", "data", "distil", "runs", "compare", "export")
TABS = ("Images", "Calibration", "Robustness", "Size and speed")
"""Of Compare, besides the one that opens first; what they show is kept after the first visit."""
SHOWN = (*PAGES, *(f"compare: {tab}" for tab in TABS))


def fill(store: Store, runs: int) -> None:
    """Finished runs that differ in their seed, made from the zoo's student."""
    student = store.run("digits-student")
    spec = student.spec.model_copy(update={"teacher": store.run("digits-teacher").id})
    for seed in range(runs):
        one = spec.model_copy(update={"seed": 1000 + seed})
        run = store.create(one)
        shutil.copy(student.weights, run.weights)
        result = {**(student.result or {}), "id": digest(one)}
        (run.folder / "result.json").write_text(json.dumps(result))


def rerun_ms(page: str, repeats: int) -> float:
    """The median time of a rerun of a page, or of Compare with a tab open (`compare: TAB`), that was opened before."""
    page, _, tab = page.partition(": ")
    app = AppTest.from_file(str(ROOT / "pages" / "frame.py"), default_timeout=300).run()
    app.query_params.update({"teacher": "digits-teacher", "student": "digits-student", "tab": tab} if tab else {})
    app = app.run() if page == "home" else app.switch_page(f"{page}.py").run()
    if app.exception or app.error:
        raise SystemExit(f"{page}: {app.exception or app.error}")
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        app.run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def server_megabytes(root: Path) -> tuple[float, bool]:
    """(resident MB, whether torch's library is mapped) of a real server after it has started and served its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port)]
    server = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"SMALLALIGN_STORE": str(root)}, stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(8)  # imports and the freeze happen in a thread
        process = psutil.Process(server.pid)
        torch = any("libtorch" in mapped.path for mapped in process.memory_maps())
        return process.memory_info().rss / 1e6, torch
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Print one line a page, then the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    times: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for runs in (0, options.runs):
            root = Path(folder) / str(runs)
            os.environ["SMALLALIGN_STORE"] = str(root)
            fill(Store(root), runs)
            times[runs] = {page: rerun_ms(page, options.repeats) for page in SHOWN}
            context.client().close()
        print(f"{'page':<26}{'0 runs':>12}{f'{options.runs} runs':>12}{'ratio':>8}")
        for page in SHOWN:
            empty, full = times[0][page], times[options.runs][page]
            print(f"{page:<26}{empty:>9.0f} ms{full:>9.0f} ms{full / empty:>8.2f}")
        print(f"torch imported by the pages: {'torch' in sys.modules}")
        megabytes, torch = server_megabytes(Path(folder) / str(options.runs))
        print(f"server: {megabytes:.0f} MB resident, torch mapped: {torch}")


if __name__ == "__main__":
    main()
