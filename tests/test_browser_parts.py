"""The Python side of the browser parts: what a browser may send, which points a chart draws, how an install fails."""

from __future__ import annotations

import base64
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pages.ui.browser import INSTALL, Curve, InstallError, _npm as npm
from pages.ui.browser._curves import MOST_POINTS, _points
from pages.ui.browser._npm import PACKAGES, Packages
from pages.ui.browser._parity import decode

LOGITS = np.arange(12, dtype=np.float32).reshape(4, 3)


def answer(**changes: Any) -> dict[str, Any]:
    """What a browser sends for four images and three classes."""
    figures = ("fetch_ms", "load_ms", "first_ms", "warm_ms", "p50_ms", "p95_ms", "min_ms", "batch_ms")
    timing = {**dict.fromkeys(figures, 1.5), "bytes": 10, "repeats": 1, "samples": 100, "steady": True}
    runtime = {
        "backend": "wasm",
        "why": "",
        "threads": 2,
        "isolated": True,
        "version": "1",
        "start_ms": 1,
        "user_agent": "x",
    }
    logits = base64.b64encode(LOGITS.tobytes()).decode()
    return {"request": "r", "runtime": runtime, "timings": {"m": timing}, "logits": {"m": logits}, **changes}


def test_logits_arrive_as_they_were() -> None:
    result = decode(answer(), models=["m"], count=4, classes=3)
    np.testing.assert_array_equal(result.logits["m"], LOGITS)
    assert result.runtime.threads == 2
    assert result.timings["m"].p50_ms == 1.5


@pytest.mark.parametrize(
    ("changes", "count", "says"),
    [
        ({}, 5, "wrong size"),
        ({"logits": {"m": ""}}, 4, "wrong size"),
        ({"logits": {"m": "%%%"}}, 4, "not base64"),
        ({"logits": {}}, 4, "missing"),
        ({"logits": {"m": 7}}, 4, "wrong type"),
        ({"logits": None}, 4, "wrong type"),
        ({"timings": {"m": {}}}, 4, "bytes"),
        ({"runtime": None}, 4, "runtime"),
    ],
)
def test_a_browser_is_not_trusted(changes: dict[str, Any], count: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        decode(answer(**changes), models=["m"], count=count, classes=3)


def test_points_are_sorted_and_gaps_stay() -> None:
    assert _points(Curve("a", [2, 0, 1, 1], [3.0, 1.0, 9.0, math.nan])) == ([0, 1, 2], [1.0, None, 3.0])
    with pytest.raises(ValueError, match="x and y of equal length"):
        _points(Curve("a", [1, 2], [1.0]))


def test_a_long_curve_keeps_its_extremes_and_its_divergence() -> None:
    y = [math.sin(i / 50) for i in range(30_000)]
    y[1234], y[20_000], y[25_000] = 50.0, -70.0, math.inf
    x, drawn = _points(Curve("a", list(range(len(y))), y))
    values = [value for value in drawn if value is not None]
    assert len(x) <= MOST_POINTS + 1
    assert x == sorted(x)
    assert (max(values), min(values)) == (50.0, -70.0)
    assert x[drawn.index(None)] == 25_000


def test_an_install_without_npm_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PACKAGES.folder / "package-lock.json", tmp_path)
    monkeypatch.setattr(npm, "_npms", lambda: iter(()))
    with pytest.raises(InstallError, match="npm not found") as caught:
        Packages(tmp_path).install()
    assert INSTALL in str(caught.value)


def test_a_failing_npm_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PACKAGES.folder / "package-lock.json", tmp_path)
    monkeypatch.setattr(npm, "_npms", lambda: iter([("a broken npm", ["sh", "-c", "echo no such host >&2; exit 7"])]))
    with pytest.raises(InstallError, match=r"a broken npm \(exit code 7\): no such host"):
        Packages(tmp_path).install()


def test_the_lock_file_names_no_host() -> None:
    for name in ("package.json", "package-lock.json", ".npmrc"):
        assert "://" not in (PACKAGES.folder / name).read_text()
