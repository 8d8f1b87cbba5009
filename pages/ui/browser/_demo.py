"""The browser demo: a folder that any static host serves, with one model, our pad and the runtime from npm.

It needs no server of ours, no other host and no special headers (without cross-origin isolation there is one thread).
The third-party files are copied from `node_modules` when the demo is made; none of them is committed.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from pages.ui.browser._npm import INSTALL, PACKAGES, InstallError, Packages
from pages.ui.browser._urls import MODULES

PAD = ("demo.mjs", "draw.mjs", "ort.mjs", "ort_worker.mjs", "pixels.mjs")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
NOTICE = """onnxruntime-web {version}, from npm.

MIT License. Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""  # the package brings no licence file of its own
README = """Serve this folder with any static host, for instance `python -m http.server`, and open it. Opening the file
itself does not work: browsers load modules and models from a server only. The camera requires https or localhost.
"""


def demo_files(model: bytes, report: dict[str, Any], name: str, packages: Packages = PACKAGES) -> dict[str, bytes]:
    """The files of the demo by their path.

    Args:
        model: the .onnx file.
        report: the export's parity report, as in parity.json.
        name: of the model.

    Raises:
        InstallError: the npm packages are not installed.
    """
    version = packages.versions["onnxruntime-web"]
    found = {part: packages.file("onnxruntime-web", version, f"dist/{part}") for part in RUNTIME}
    _, height, width, channels = report["shape"]
    loss = report["parity"]
    facts = {
        "name": name,
        "classes": report["classes"],
        "size": [height, width],
        "channels": channels,
        "about": f"{report['precision']}, {report['bytes']:,} bytes, test accuracy {loss['accuracy']:.2%} on "
        f"{loss['images']:,} images. Runs in this browser.",
    }
    page = (MODULES / "demo.html").read_text(encoding="utf-8")
    files = {
        "index.html": page.replace("<!-- the pad -->", (MODULES / "draw.html").read_text(encoding="utf-8")),
        "demo.json": json.dumps(facts, ensure_ascii=False),
        "README.txt": README,
        "ort/LICENSE.txt": NOTICE.format(version=version),
    }
    made = {path: text.encode() for path, text in files.items()}
    made |= {part: (MODULES / part).read_bytes() for part in PAD} | {"model.onnx": model}
    for part, path in found.items():
        if path is None:
            raise InstallError(
                f"The demo requires the browser parts. Given: onnxruntime-web {version} without {part}. Run: {INSTALL}"
            )
        made[f"ort/{part}"] = path.read_bytes()
    return made


def demo_zip(model: bytes, report: dict[str, Any], name: str, packages: Packages = PACKAGES) -> bytes:
    """The demo as a zip with one folder."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in demo_files(model, report, name, packages).items():
            archive.writestr(f"demo/{path}", content)
    return stream.getvalue()


def unpack_demo(download: Path, to: Path) -> Path:
    """Make the demo's folder from a downloaded zip of an export; returns its page.

    Raises:
        InstallError: the zip is not such a download, the folder is not empty, or the npm packages are not installed.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InstallError(f"The output folder is not empty, or is a file. Given: {to}. Choose another one.")
    try:
        with zipfile.ZipFile(download) as archive:
            model, report = archive.read("model.onnx"), json.loads(archive.read("parity.json"))
        files = demo_files(model, report, f"{report['run']} {report['precision']}")
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, zlib.error, zipfile.BadZipFile):
        raise InstallError(
            f"Not a bundle of an export. Given: {download}. Make one with "
            "`python -m smallalign_core export RUN --to student.zip`."
        ) from None
    for path, content in files.items():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_bytes(content)
    return to / "index.html"
