"""The story in a real browser: distil, watch, compare, export, check in the browser, draw, download, verify."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import axe
import chromium
import processes
import psutil
import pytest
from conftest import program
from playwright.sync_api import Browser, Page, expect, sync_playwright

from smallalign_core.runs.store import State, Store

pytestmark = [pytest.mark.browser]
FOUND = chromium.executable()
MINUTE = 60_000

if FOUND is None:
    if os.environ.get("CI"):
        pytest.fail("no Chromium on this machine: .ci/run installs it", pytrace=False)
    warnings.warn("NO BROWSER TEST RAN: no Chromium was found. Install one, or set CHROMIUM to its path.", stacklevel=1)
    pytest.skip("no Chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("browser") / "models")


@pytest.fixture(scope="module")
def site(shop: Store) -> Iterator[str]:
    log = shop.root.parent / "server.log"
    with chromium.dashboard(log, environment={"SMALLALIGN_STORE": str(shop.root), "OMP_NUM_THREADS": "1"}) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = chromium.launched(playwright, FOUND)
        yield opened
        opened.close()


class Watched:
    """A page whose requests and console are kept."""

    def __init__(self, browser: Browser, site: str) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.outside: list[str] = []
        self.refused: list[str] = []
        self.page.on("request", self._note)
        self.page.on(
            "console", lambda said: self.refused.append(said.text) if "Content Security" in said.text else None
        )
        self.site = site

    def _note(self, request: object) -> None:
        url = str(getattr(request, "url", ""))
        if not url.startswith((self.site, self.site.replace("http", "ws"), "data:", "blob:")):
            self.outside.append(url)


@pytest.fixture
def watched(browser: Browser, site: str) -> Iterator[Watched]:
    found = Watched(browser, site)
    yield found
    found.page.close()
    assert found.outside == [], "the page asked another host"
    assert found.refused == [], "the page broke its own security policy"


def cells(page: Page) -> dict[str, list[str]]:
    """The parity table by column: what PyTorch, ONNX Runtime and the browser say."""
    table = page.locator("table").filter(has_text="Max. logit difference")
    names = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    rows = [
        [text.strip() for text in row.locator("th, td").all_inner_texts()] for row in table.locator("tbody tr").all()
    ]
    assert [row[0] for row in rows] == ["PyTorch", "ONNX Runtime", "This browser"]
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def test_the_whole_story(watched: Watched, shop: Store, tmp_path: Path) -> None:
    page, site = watched.page, watched.site
    page.goto(site)
    page.get_by_role("button", name="Run the demo (30 s)").click(timeout=MINUTE)
    page.wait_for_url(re.compile(r"run=[0-9a-f]{16}"), timeout=MINUTE)
    run = re.search(r"run=([0-9a-f]{16})", page.url).group(1)  # type: ignore[union-attr]
    until = time.monotonic() + 120
    while (result := shop.run(run).result) is None:
        assert time.monotonic() < until, f"the run is {shop.run(run).state}"
        page.wait_for_timeout(300)
    expect(page.get_by_text(f"{result['test']['accuracy']:.2%}").first).to_be_visible(timeout=MINUTE)
    assert "Single seed" in page.locator("body").inner_text()

    page.reload()
    expect(page.get_by_text(f"{result['test']['accuracy']:.2%}").first).to_be_visible(timeout=MINUTE)
    assert run in page.url

    page.goto(f"{site}/compare?teacher=digits-teacher&student={run}")
    expect(page.get_by_text("McNemar").first).to_be_visible(timeout=2 * MINUTE)

    page.goto(f"{site}/export?run={run}")
    expect(page.get_by_text("Parity check passed")).to_be_visible(timeout=2 * MINUTE)
    page.get_by_role("button", name="Run check in this browser").click()
    expect(page.get_by_text("onnxruntime-web, wasm")).to_be_visible(timeout=2 * MINUTE)
    table = cells(page)
    assert table["Top-1 agreement"][1:] == ["100.00%", "100.00%"]
    assert float(table["Max. logit difference"][1]) < 1e-4
    assert float(table["Max. logit difference"][2]) < 1e-3
    assert len(set(table["Accuracy"])) == 1
    assert table["Accuracy"][0] == f"{result['test']['accuracy']:.2%}"
    assert int(table["Threads"][2]) >= 2, "COOP and COEP give the browser threads"
    assert float(table["Latency p50"][2].split()[0]) < 50

    with page.expect_download() as waiting:
        page.get_by_role("link", name="ONNX file").click()
    waiting.value.save_as(tmp_path / "student.onnx")
    content = (tmp_path / "student.onnx").read_bytes()
    report = json.loads((shop.root / "exports" / run / "parity.json").read_text())
    assert hashlib.sha256(content).hexdigest() == report["sha256"]
    proof = program("verify", tmp_path / "student.onnx", "--json", store=shop)
    assert json.loads(proof.stdout)["ok"] is True

    with page.expect_download() as waiting:
        page.get_by_role("link", name="Bundle (model card").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        told = json.loads(archive.read("parity.json"))
        assert archive.read("model.onnx") == content
        assert "onnxruntime-web" in archive.read("card.md").decode()
    assert told["browser"]["top1_agreement"] == 1.0
    assert told["browser"]["got_the_file"] is True
    page.reload()
    expect(page.get_by_text("onnxruntime-web, wasm")).to_be_visible(timeout=MINUTE)
    expect(page.get_by_role("button", name="Repeat check in this browser")).to_be_visible()


def test_draw_and_both_models_answer(watched: Watched, shop: Store) -> None:
    page = watched.page
    run = shop.runs()[0].id
    page.goto(f"{watched.site}/export?run={run}")
    pad = page.locator("canvas").first
    pad.scroll_into_view_if_needed(timeout=2 * MINUTE)
    expect(page.get_by_text("teacher", exact=True).first).to_be_visible(timeout=MINUTE)
    box = pad.bounding_box()
    assert box is not None
    x, top = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.2
    page.mouse.move(x, top)
    page.mouse.down()
    page.mouse.move(x, top + box["height"] * 0.6, steps=12)  # a vertical stroke
    page.mouse.up()
    answers = page.get_by_text(re.compile(r"\d+(\.\d+)?\s?%"))
    expect(answers.nth(3)).to_be_visible(timeout=MINUTE)  # top-3 of two models


def pictures(page: Page, *, not_these: list[str] | None = None) -> list[str]:
    """What the grid of views shows, once it stands still: the address and the place of each picture."""
    until, before = time.monotonic() + 60, None
    look = "all => all.map(one => getComputedStyle(one).backgroundImage + one.style.backgroundPosition)"
    while True:
        now = page.locator(".sa-views .sa-tile").evaluate_all(look)
        whole = len(now) > 0 and all("data:image/png" in picture for picture in now)
        if whole and now == before and now != not_these:
            return now
        assert time.monotonic() < until, "the pictures never came" if not now else "the pictures never changed"
        before = now
        page.wait_for_timeout(300)


def test_build_a_policy_see_it_change_and_find_it_again(watched: Watched) -> None:
    page = watched.page
    page.goto(f"{watched.site}/augment?data=digits")
    first = pictures(page)
    assert len(first) == 8 * 7

    page.get_by_role("button", name="Add transform").click()
    page.get_by_role("button", name="Random erasing").click()
    page.keyboard.press("Escape")
    erased = pictures(page, not_these=first)
    page.get_by_role("spinbutton", name="Degrees").fill("90")
    page.keyboard.press("Enter")
    turned = pictures(page, not_these=erased)
    page.get_by_role("button", name="Shuffle").click()
    shuffled = pictures(page, not_these=turned)
    page.wait_for_url(re.compile(r"[?&]seed=\d+"), timeout=MINUTE)
    (seed,) = re.findall(r"[?&]seed=(\d+)", page.url)
    page.get_by_role("tab", name="Label preservation").click()
    page.get_by_role("button", name="Evaluate").click()
    expect(page.get_by_text(f"augmented versions each, seed {seed},")).to_be_visible(timeout=4 * MINUTE)
    page.get_by_role("tab", name="Label changes").click()
    expect(page.get_by_text("of 2,048 augmented images")).to_be_visible(timeout=MINUTE)
    page.get_by_role("tab", name="Preview").click()
    assert pictures(page) == shuffled

    page.reload()
    assert pictures(page) == shuffled, "the same address shows the same pictures"
    address = page.url
    page.goto(f"{watched.site}/data")
    expect(page.get_by_text("Images per class", exact=True)).to_be_visible(timeout=MINUTE)
    page.goto(address)
    assert pictures(page) == shuffled

    page.get_by_role("link", name="Use in training").click()
    page.wait_for_url(re.compile(r"/distil\?"), timeout=MINUTE)
    # The YAML of the page that is left names the parts too, but no seed.
    spec = page.get_by_test_id("stCode").filter(has_text=f"seed: {seed}")
    for words in ("kind: erase", "degrees: 90", "digits"):
        spec = spec.filter(has_text=words)
    expect(spec.first).to_be_visible(timeout=2 * MINUTE)


def test_moving_a_slider_shifts_nothing(watched: Watched) -> None:
    page = watched.page
    page.goto(f"{watched.site}/augment?data=digits")
    expect(page.locator(".sa-pairs")).to_be_visible(timeout=MINUTE)
    first = pictures(page)
    page.wait_for_function("document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'")
    page.evaluate("document.fonts.ready")
    page.wait_for_function(  # what comes late while a page is opened, such as its style, is not the slider's doing
        """() => { const top = document.querySelector('[role=tablist]').getBoundingClientRect().top;
            window.__still = top === window.__top ? (window.__still ?? 0) + 1 : 0; window.__top = top;
            return window.__still > 60; }"""
    )
    page.evaluate(
        """() => { window.__tops = {}; const look = () => {
            for (const what of ['[role=tablist]', '.sa-views', '.sa-pairs']) {
                const found = document.querySelector(what);
                if (found) (window.__tops[what] ??= new Set()).add(Math.round(found.getBoundingClientRect().top));
            }
            requestAnimationFrame(look); }; look(); }"""
    )
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    pictures(page, not_these=first)
    tops = page.evaluate("Object.fromEntries(Object.entries(window.__tops).map(([what, tops]) => [what, [...tops]]))")
    assert {what: len(seen) for what, seen in tops.items()} == {"[role=tablist]": 1, ".sa-views": 1, ".sa-pairs": 1}, (
        tops
    )


@pytest.mark.parametrize("path", ["", "data?data=digits", "augment?data=digits", "distil", "runs", "compare", "export"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_opens_by_a_deep_link(path: str, scheme: str, browser: Browser, site: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": 400, "height": 800})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{site}/{path}")
    expect(page.locator("h1").first).to_be_visible(timeout=MINUTE)
    page.wait_for_timeout(1500)
    text = page.locator("body").inner_text()
    assert "Traceback" not in text
    assert "unexpected error" not in text
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 400, "the page scrolls sideways on a telephone"
    context.close()


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_export_is_accessible(scheme: str, width: int, browser: Browser, site: str) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(f"{site}/export?run=digits-student&precision=int8")
    expect(page.get_by_text("Try it in this browser")).to_be_visible(timeout=2 * MINUTE)
    expect(page.locator("canvas.paper")).to_be_visible(timeout=MINUTE)
    page.wait_for_timeout(1000)
    found = axe.grave(page)
    context.close()
    assert found == []


def test_headers_and_isolation(watched: Watched) -> None:
    with urllib.request.urlopen(watched.site) as answer:
        headers = {name.lower(): value for name, value in answer.headers.items()}
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-embedder-policy"] == "require-corp"
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    watched.page.goto(watched.site)
    assert watched.page.evaluate("crossOriginIsolated") is True


def test_artifacts_stay_inside(site: str) -> None:
    for path in ("/artifacts/../../spec.json", "/artifacts/%2e%2e/x", "/artifacts/0000000000000000/spec.json"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(site + path)
        assert caught.value.code in (400, 404)


def test_killing_the_server_never_harms_a_run(tmp_path: Path, browser: Browser) -> None:
    """SIGKILL to the server in the middle of a run: the run goes on to its end, and a new server shows it."""
    store = Store(tmp_path / "models")
    environment = {"SMALLALIGN_STORE": str(store.root), "OMP_NUM_THREADS": "1"}
    spec = tmp_path / "spec.yaml"
    spec.write_text("data: digits\nnetwork: {kind: cnn, width: 12}\nepochs: 80\naugment: [shift]\n")
    with chromium.dashboard(tmp_path / "one.log", environment=environment) as site:
        run = store.run(json.loads(program("submit", spec, "--json", store=store).stdout)["id"])
        until = time.monotonic() + 90
        while not run.events("epoch"):
            assert time.monotonic() < until, "the server's worker never started the run"
            time.sleep(0.1)
        port = int(site.rsplit(":", 1)[1])
        for process in psutil.process_iter(["cmdline"]):
            if f"{port}" in (process.info["cmdline"] or []):
                os.kill(process.pid, signal.SIGKILL)
        until = time.monotonic() + 240
        while run.state is not State.FINISHED:
            assert run.state is State.RUNNING, f"the run is {run.state}"
            assert time.monotonic() < until
            time.sleep(0.2)
    assert run.status["attempt"] == 1
    with chromium.dashboard(tmp_path / "two.log", environment=environment) as site:
        page = browser.new_page()
        page.goto(f"{site}/runs?run={run.id}")
        expect(page.get_by_text("finished").first).to_be_visible(timeout=MINUTE)
        page.close()


def test_the_server_process_stays_light(site: str) -> None:
    """Below 300 MB, and without torch, after all that was done above."""
    port = site.rsplit(":", 1)[1]
    server = next(p for p in psutil.process_iter(["cmdline"]) if port in (p.info["cmdline"] or []))
    assert server.memory_info().rss < 300 * 1024**2
    mapped = {Path(entry.path).name for entry in server.memory_maps()} if sys.platform == "linux" else set()
    assert not any(name.startswith(("libtorch", "libonnxruntime", "_C.cpython")) for name in mapped)


def test_the_browser_parts_say_how_they_are_installed() -> None:
    done = processes.run(processes.python("-m", "pages.ui.browser"), timeout=500)
    assert done.returncode == 0, done.stderr
