"""Exports in a real browser: a thousand images from a cold start, and the latency beside ONNX Runtime's.

    python benchmarks/browser.py [--rounds 3] [--threads 1 2]

A headless Chromium opens a page of our own server (the routes and headers of the dashboard), loads runtime and
model, and answers 1,000 digits: at 8 x 8 pixels with the zoo's student and teacher, at 28 x 28 with networks of random
weights, whose speed is that of trained ones. "To the last answer" runs from opening the page in a fresh profile to the
thousandth answer; what is promised is 5 s. Latencies are medians of one image after a warm-up by time; browser and ONNX
Runtime take turns, with the same number of threads. The ratio is that of the medians over the rounds; the goal is 3.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import: see smallalign_core/system/telemetry.py

import numpy as np
import onnxruntime
import torch
import uvicorn
from playwright.sync_api import Browser, sync_playwright
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # in place of this folder, whose own `pages.py` would hide the package
sys.path.append(str(ROOT / "tests"))

import chromium

from pages.ui.app.server import routes
from pages.ui.browser import install
from pages.ui.browser._urls import package_url
from pages.ui.security.middleware import middleware
from smallalign_core import data, export, networks
from smallalign_core.export._runtime import timed
from smallalign_core.networks import Classifier
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, parse

COUNT = 1000
RANDOM: dict[str, Any] = {
    "CNN 16, 28 x 28": {"kind": "cnn", "width": 16},
    "ResNet 24, 28 x 28": {"kind": "resnet", "width": 24},
}
ANSWER = """async ({ model, images, count, shape, runtime, threads }) => {
  const { withRuntime } = await import('/assets/ort.mjs');
  let ort;
  const absolute = (path) => new URL(path, location.origin).href;
  const found = await withRuntime({ runtime, backend: 'wasm', threads }, (one) => { ort = one; }, async (_, about) => {
    const { images: pixels } = await ort.call('images', { url: absolute(images), count, shape });
    const opened = await ort.call('open', { name: 'm', url: absolute(model), backend: about.backend, shape });
    const { logits } = await ort.call('classify', { name: 'm', images: pixels, count, shape }, () => {});
    const seconds = performance.now() / 1000;  // since the page was opened
    const image = pixels.slice(0, shape.reduce((a, b) => a * b, 1));
    const timed = await ort.call('time', { name: 'm', image, shape });
    return { seconds, threads: about.threads, ...opened, ...timed, logits: Array.from(logits) };
  });
  ort.end();
  return found;
}"""


def models() -> dict[str, tuple[Classifier, np.ndarray[Any, Any]]]:
    """Name to (classifier, a thousand images uint8 [N, H, W, 1])."""
    with tempfile.TemporaryDirectory() as folder:
        splits = data.load(DataSpec(source="digits"), Path(folder))
        small = np.concatenate([np.asarray(part.images[:]) for part in (splits.test, splits.val, splits.train)])[:COUNT]
    large = small.repeat(4, axis=2).repeat(4, axis=3)[:, :, 2:30, 2:30]
    store = Store(ROOT / "models")
    found = {
        name: (networks.from_file(store.run(name).weights), small) for name in ("digits-student", "digits-teacher")
    }
    for name, network in RANDOM.items():
        spec = parse({"data": "digits", "network": network}).network
        body = networks.build(spec, splits.classes, (1, 28, 28), mean=[0.3], std=[0.4], seed=1)
        with torch.no_grad():  # so that batch norms are not those of birth
            body.train()(torch.from_numpy(large[:256].copy()))
        found[name] = (body.eval(), large)
    return {name: (body, images.transpose(0, 2, 3, 1).copy()) for name, (body, images) in found.items()}


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The dashboard's routes and headers around an empty page; files of `folder` are the artifacts."""
    page = Route("/", lambda _: HTMLResponse("<!doctype html><title>benchmark</title>"))
    app = Starlette(routes=[*routes(lambda _, name: folder / name), page], middleware=middleware())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def in_browser(browser: Browser, site: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a fresh profile answers, and how long it took."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(site)
    found: dict[str, Any] = page.evaluate(ANSWER, options)
    context.close()
    return found


def in_python(content: bytes, image: np.ndarray[Any, Any], threads: int, seconds: float = 1.0) -> float:
    """The median milliseconds of one image, by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return timed(lambda: session.run(["logits"], {"images": image[None]}), seconds)[0]


def main() -> None:
    """Print one line for each model, precision and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="names of models that hold this")
    options = parser.parse_args()
    install()
    print("model                 file threads  to the last answer   browser    Python  ratio (range)")
    slowest, ratios = 0.0, []
    with tempfile.TemporaryDirectory() as made, serving(Path(made)) as site, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.executable(), args=chromium.FLAGS)
        for name, (classifier, pixels) in models().items():
            if options.only not in name:
                continue
            (Path(made) / "images.bin").write_bytes(pixels.tobytes())
            content = export.to_onnx(classifier)
            (Path(made) / "model.onnx").write_bytes(content)
            expected = export.OnnxClassifier(content).logits(pixels)
            for threads in options.threads:
                question = {"model": "/artifacts/x/model.onnx", "images": "/artifacts/x/images.bin", "count": COUNT}
                question |= {"shape": list(pixels.shape[1:]), "threads": threads}
                question |= {"runtime": package_url("onnxruntime-web", "dist/")}
                rounds = []
                for _ in range(options.rounds):
                    answer = in_browser(browser, site, question)
                    if not np.array_equal(np.reshape(answer["logits"], expected.shape).argmax(1), expected.argmax(1)):
                        raise SystemExit(f"{name}: the browser answers something else")
                    rounds.append((answer["seconds"], answer["p50_ms"], in_python(content, pixels[0], threads)))
                seconds, web, here = (statistics.median(column) for column in zip(*rounds, strict=True))
                each = [one / other for _, one, other in rounds]
                slowest, ratios = max(slowest, *(one for one, _, _ in rounds)), [*ratios, web / here]
                print(
                    f"{name:<20} {len(content) / 1000:>3.0f}kB {answer['threads']:>7} {seconds:>17.2f} s "
                    f"{web:>6.3f} ms {here:>6.3f} ms  {web / here:.1f} ({min(each):.1f} to {max(each):.1f})",
                    flush=True,
                )
        browser.close()
    print(f"slowest thousand images: {slowest:.2f} s (promised: 5 s)")
    print(f"latency, browser over ONNX Runtime: {min(ratios):.1f} to {max(ratios):.1f} (goal: at most 3)")


if __name__ == "__main__":
    main()
