"""The parts of the dashboard that run in the browser: parity check, drawing pad and live curves.

Each part is a component in three files: `_<name>.py` (what pages call), `<name>.mjs` (what the browser runs) and
`<name>.html` (markup and style). `_npm.py` installs the two npm packages they need.
"""

from __future__ import annotations

from collections.abc import Callable

from pages.ui.browser._camera import camera as camera
from pages.ui.browser._curves import Curve as Curve, curves as curves, smoothing as smoothing
from pages.ui.browser._demo import demo_zip as demo_zip
from pages.ui.browser._draw import draw as draw, sketch as sketch
from pages.ui.browser._frame import frame as frame
from pages.ui.browser._gallery import Picture as Picture, gallery as gallery
from pages.ui.browser._npm import INSTALL as INSTALL, PACKAGES, InstallError as InstallError
from pages.ui.browser._parity import (
    ParityResult as ParityResult,
    Runtime as Runtime,
    Timing as Timing,
    parity as parity,
)
from pages.ui.browser._save import save as save
from pages.ui.browser._urls import artifact_url as artifact_url


def installed() -> bool:
    """True if the locked npm packages are installed."""
    return PACKAGES.installed()


def install(report: Callable[[str], None] = lambda _: None) -> None:
    """Install the npm packages; safe in a thread and in several processes at once. Raises `InstallError`."""
    PACKAGES.install(report)
