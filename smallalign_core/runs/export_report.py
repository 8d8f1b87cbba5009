"""The report of an export bundle, which lies in it as `parity.json`; without torch, for pages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Parity:
    """Parity of two runtimes of a model.

    Attributes:
        images: how many held-out images were compared.
        max_abs_diff: largest absolute difference of any logit.
        relative_diff: the same, divided by the standard deviation of the reference's logits.
        top1_agreement: share of images with the same top-1.
        accuracy: of the file's answers.
        reference_accuracy: of the reference's answers.
        p50_ms, p95_ms: time for one image, batch 1, after warm-up.
        ok: within the gate of its precision; for fp32 the same top-1 everywhere, and logits within 1e-4 of their
            spread.
    """

    images: int
    max_abs_diff: float
    relative_diff: float
    top1_agreement: float
    accuracy: float
    reference_accuracy: float
    p50_ms: float
    p95_ms: float
    ok: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Loss:
    """What a smaller precision costs, on the same images (Bonett & Price, 2012, for the interval).

    Attributes:
        images: how many.
        accuracy, reference: of the file, and of PyTorch in single precision.
        loss: the difference, positive where the file is worse; `low` to `high` is its 95% interval.
        agreement: share of images with the same top-1.
        flagged: whether more than `LIMIT` is lost.
    """

    images: int
    accuracy: float
    reference: float
    loss: float
    low: float
    high: float
    agreement: float
    flagged: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def blank(cls, images: int) -> Loss:
        """A sample of so many images that represents all."""
        return cls(images, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, False)


@dataclass(frozen=True)
class BrowserParity(Parity):
    """Parity of a user's browser and PyTorch, computed from the logits that it sent.

    Attributes:
        what: what of this the browser reported; when: the time, in ISO 8601.
        got_the_file: whether it computed the file's digest.
        runtime, timing: as reported by the browser.
    """

    what: str
    when: str
    got_the_file: bool
    logits_sha256: str
    runtime: dict[str, Any]
    timing: dict[str, Any]


@dataclass(frozen=True)
class ExportLosses:
    """What a precision costs, on both held-out splits."""

    val: Loss
    test: Loss


@dataclass(frozen=True)
class ExportData:
    """The test images of a bundle."""

    fingerprint: str
    images_sha256: str


@dataclass(frozen=True)
class ExportReport:
    """A run's export in one precision.

    Attributes:
        bundle: version of the bundle's files.
        file: name of the ONNX file; bytes, sha256, opset: of it.
        flagged: whether it loses more than `limit` of the images.
        temperature: folded into its probabilities.
        parity: ONNX Runtime against PyTorch; browser: the same of a user's browser, None before that was checked.
        shape: [N, H, W, C] of the images that a browser gets; labels: theirs.
        files: digests of the bundle's files.
    """

    bundle: int
    file: str
    bytes: int
    sha256: str
    opset: int
    run: str
    precision: str
    loss: ExportLosses
    flagged: bool
    limit: float
    weights_sha256: str | None
    data: ExportData
    temperature: float | None
    parity: Parity
    browser: BrowserParity | None
    classes: tuple[str, ...]
    shape: tuple[int, int, int, int]
    labels: tuple[int, ...]
    files: dict[str, str]
