"""The parity check of exported models in the browser: the Python side."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import streamlit as st
from pydantic import TypeAdapter, ValidationError

from pages.ui.browser._mount import missing, mount
from pages.ui.browser._urls import package_url


@dataclass(frozen=True)
class Timing:
    """Timings of one model in the browser; in milliseconds, for one image unless noted otherwise."""

    bytes: int
    fetch_ms: float
    load_ms: float
    """Parsing the file and preparing the session."""
    first_ms: float
    """The first inference, before the browser's compiler has warmed up."""
    warm_ms: float
    """Duration of the warm-up."""
    steady: bool
    """True if two successive windows of the warm-up agreed within 10%; else the machine was busy."""
    p50_ms: float
    p95_ms: float
    min_ms: float
    repeats: int
    """Runs per timed sample, so that a sample lasts 2 ms and the browser's coarse clock does not matter."""
    samples: int
    batch_ms: float
    """All images together."""
    sha256: str | None = None
    """Of the file that arrived; None where the page is no secure context."""


@dataclass(frozen=True)
class Runtime:
    """The runtime of the models."""

    backend: Literal["wasm", "webgpu"]
    why: str
    """Reason for this backend."""
    threads: int
    isolated: bool
    """The page's `crossOriginIsolated`, without which there is one thread only."""
    version: str
    """Of onnxruntime-web."""
    start_ms: float
    user_agent: str


@dataclass(frozen=True)
class ParityResult:
    """The browser's logits for `count` images, for each model."""

    request: str
    runtime: Runtime
    timings: dict[str, Timing]
    logits: dict[str, npt.NDArray[np.float32]]
    """By model: float32 [count, classes]."""
    images_sha256: str | None = None
    """Of the images that arrived, as `Timing.sha256`."""


_RUNTIME = TypeAdapter(Runtime)
_TIMING = TypeAdapter(Timing)
_DIGEST = TypeAdapter(str | None)


def parity(
    *,
    key: str,
    request: str,
    models: Mapping[str, str],
    images: str,
    count: int,
    shape: tuple[int, int, int],
    classes: int | None = None,
    threads: int = 0,
    backend: Literal["auto", "wasm", "webgpu"] = "auto",
) -> ParityResult | None:
    """Run each model on `count` images in the browser, and time it.

    The work is done once per `request`; reruns of the page return the same result. Progress and failures are shown
    in the component.

    Args:
        key: of the Streamlit component.
        request: identifies the work, for instance a digest of models and images; a new value starts it again.
        models: name to address of an ONNX file: input `images` uint8 [N, H, W, C], outputs `logits`, `probabilities`.
        images: address of the raw uint8 images, one after the other.
        count: how many there are.
        shape: height, width and channels of each.
        classes: how many logits an image must have; None accepts any number.
        threads: of the WASM backend; 0 takes up to four. Without cross-origin isolation there is one.
        backend: `auto` takes WebGPU if there is a real adapter, else WASM.

    Returns:
        The result, or None while the browser is working, if it failed, and if the browser parts are not installed.
    """
    if missing("The browser check"):
        return None
    memory = f"{key}-answer"
    kept = st.session_state.get(memory)
    known = kept if kept and kept.get("request") == request else None
    answer = mount(
        "parity",
        key=key,
        data={
            "request": request,
            "models": dict(models),
            "images": images,
            "count": count,
            "shape": list(shape),
            "threads": threads,
            "backend": backend,
            "runtime": package_url("onnxruntime-web", "dist/"),
            "done": known is not None and "error" not in known,
        },
        on_result_change=lambda: None,
    ).result
    if isinstance(answer, dict) and answer.get("request") == request:
        # A trigger lasts for one rerun, so the page has to keep it. Plain data only: classes change on hot reload.
        st.session_state[memory] = known = answer
    if known is None or "error" in known:
        return None
    try:
        return decode(known, models=list(models), count=count, classes=classes)
    except ValueError as error:
        st.error(str(error))
        return None


def decode(answer: Mapping[str, Any], *, models: list[str], count: int, classes: int | None = None) -> ParityResult:
    """Validate the response of a browser and turn it into a result.

    Raises:
        ValueError: anything is missing or has the wrong type or size.
    """
    try:
        runtime = _RUNTIME.validate_python(answer.get("runtime"))
        timings = {name: _TIMING.validate_python(answer["timings"][name]) for name in models}
        images = _DIGEST.validate_python(answer.get("images_sha256"))
        logits = {name: _matrix(answer["logits"][name], name, count, classes) for name in models}
    except (KeyError, TypeError, ValidationError) as error:
        where = "a value is missing or has the wrong type"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = f"{'.'.join(map(str, first['loc'])) or 'the runtime'}: {first['msg']}"
        raise ValueError(
            f"Invalid response of the browser. Given: {where}. Reload the page and repeat the check."
        ) from error
    return ParityResult(
        request=str(answer.get("request")), runtime=runtime, timings=timings, logits=logits, images_sha256=images
    )


def _matrix(text: str, name: str, count: int, classes: int | None) -> npt.NDArray[np.float32]:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(
            f"The browser's logits of {name} are not base64. Given: {len(text)} characters. "
            "Reload the page and repeat the check."
        ) from error
    if not raw or len(raw) % (4 * count) or (classes is not None and len(raw) != 4 * count * classes):
        expected = f"{count} x {classes}" if classes is not None else f"a multiple of {count}"
        raise ValueError(
            f"The browser's logits of {name} have the wrong size. Given: {len(raw)} bytes, expected {expected} float32 "
            "numbers. Check that this is the model file of this run."
        )
    return np.frombuffer(raw, dtype="<f4").astype(np.float32, copy=False).reshape(count, -1)
