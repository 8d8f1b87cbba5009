"""Screenshots of every page of the dashboard, in light and dark: `python docs/screenshots.py [PAGE...]`.

It fills a store of its own with what these pages show (a run, a data quality report, small studies), starts the
dashboard over it, opens each page in headless Chromium and writes `docs/img/<page>-<theme>.png`. Needs what the browser
tests need.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import chromium  # noqa: E402
import processes  # noqa: E402

IMAGES = ROOT / "docs" / "img"
THEMES = ("light", "dark")
SIZE = {"width": 1280, "height": 800}
SPEC = (ROOT / "models" / "zoo" / "digits-student" / "spec.yaml").read_text() + "seed: 1\n"
OPTIMIZERS = """
data: {source: digits, images: 300}
network: {kind: mlp, width: 16, depth: 1}
epochs: 10
batch: 50
optimizers: [adamw, sgd, muon]
hands_off: []
seeds: 3
trials: 2
budgets: [1]
"""
SCALING = """
data: digits
network: {kind: mlp, width: 8, depth: 1}
teacher: digits-teacher
batch: 64
epochs: 2
steps: 200
precision: fp32
widths: [8, 16, 32]
fractions: [0.25, 0.5, 1]
recipes: [baseline, distil]
replicates: 3
"""
SEARCH = ("--max-kb", "30", "--min-accuracy", "85%", "--budget", "10trials")
SEARCHED = ("--set", "data.validation=0.3", "--set", "rungs=[5,15,45]")
POLICY = '[{"kind":"shift","pixels":1},{"kind":"rotate","degrees":10}]'
READY = (
    "() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
    " && !document.querySelector('[data-testid=stSkeleton], [data-testid=stSpinner]')"
)


def pages() -> list[str]:
    """The pages of the dashboard, by the names of their scripts."""
    return sorted(script.stem for script in (ROOT / "pages").glob("*.py") if script.stem != "frame")


def smallalign(store: Path, *arguments: str, text: str = "") -> dict[str, Any]:
    """One command on that store; `text` becomes the YAML file that it takes."""
    file = store.parent / f"{arguments[0]}.yaml"
    file.write_text(text)
    given = [str(file) if one == "FILE" else one for one in arguments]
    line = processes.python("-m", "smallalign_core", *given, "--store", store, "--json")
    done = processes.run(line, timeout=1800)
    if done.returncode:
        raise SystemExit(
            f"`{' '.join(arguments)}` failed with exit code {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def filled(store: Path, names: list[str]) -> dict[str, dict[str, str]]:
    """The address of each of these pages, showing something finished; made for them only."""
    studies = {
        "optimizers": ("optimizers", "FILE"),
        "shrink": ("shrink", "digits", *SEARCH, *SEARCHED),
        "scaling": ("scale", "FILE"),
    }
    text = {"optimizers": OPTIMIZERS, "scaling": SCALING}
    made = {
        name: {"study": str(smallalign(store, *line, text=text.get(name, ""))["id"])}
        for name, line in studies.items()
        if name in names
    }
    if "data" in names:
        smallalign(store, "inspect", "digits")
    if {"home", "runs"} & set(names):
        made["runs"] = {"run": smallalign(store, "train", "FILE", text=SPEC)["id"]}
    return made | {
        "data": {"data": "digits"},
        "augment": {"data": "digits", "policy": POLICY},
        "lessons": {"lesson": "temperature", "T": "4"},
        "distil": {"data": "digits", "teacher": "digits-teacher"},
        "compare": {"teacher": "digits-teacher", "student": "digits-student", "tab": "Overview"},
        "export": {"run": "digits-student"},
    }


def save(shot: bytes, to: Path) -> None:
    """A PNG of at most 256 colours: a third of the size, and text stays sharp."""
    whole = to.with_suffix(".whole.png")
    whole.write_bytes(shot)
    with Image.open(whole) as image:
        image.convert("RGB").quantize(192, dither=Image.Dither.NONE).save(to, optimize=True)
    whole.unlink()


@contextlib.contextmanager
def opened(flags: tuple[str, ...] = ()) -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    if (found := chromium.executable()) is None:
        raise SystemExit("no Chromium was found: install it, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        browser = chromium.launched(playwright, found, *flags)
        yield browser
        browser.close()


def main(names: list[str]) -> None:
    """Write the screenshots of these pages."""
    processes.mark()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sa-") as folder:
        store = Path(folder) / "models"
        query = filled(store, names)
        environment = {"SMALLALIGN_STORE": str(store), "OMP_NUM_THREADS": "1"}
        with chromium.dashboard(Path(folder) / "server.log", environment=environment) as site, opened() as browser:
            for theme in THEMES:
                context = browser.new_context(color_scheme=theme, viewport=SIZE, reduced_motion="reduce")
                for name in names:
                    page = context.new_page()
                    page.goto(f"{site}/{'' if name == 'home' else name}?{urlencode(query.get(name, {}))}")
                    for _ in range(3):  # pages run again when the browser reports its time zone and width
                        page.wait_for_function(READY)
                        page.wait_for_timeout(1500)
                    save(page.screenshot(), IMAGES / f"{name}-{theme}.png")
                    page.close()
                context.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", nargs="*", help="names such as data or compare; all without")
    main(parser.parse_args().page or pages())
