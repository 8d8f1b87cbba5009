"""The report of an export bundle, which lies in it as `parity.json`; without torch, for pages."""

from __future__ import annotations

from collections.abc import Mapping
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
class Drop:
    """What an int8 file loses against fp32 on the validation images (Tango, 1998, for the interval).

    Attributes:
        images: how many.
        lost, gained: those that only fp32, and only int8, predicts right.
        loss: accuracy lost, as a share; `low` to `high` is its interval at `level`, which counts all files compared.
    """

    images: int
    lost: int
    gained: int
    loss: float
    low: float
    high: float
    level: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def in_points(drop: Mapping[str, Any]) -> str:
    """A `Drop` in words."""
    return (
        f"{100 * drop['loss']:.2f} points on {drop['images']:,} validation images ({100 * drop['level']:.4g}% interval "
        f"{100 * drop['low']:.2f} to {100 * drop['high']:.2f})"
    )


@dataclass(frozen=True)
class LayerSensitivity:
    """A layer, and what it costs to quantize it.

    Attributes:
        name: of its weights in the network; weights: how many.
        divergence: mean Kullback-Leibler divergence, in nats, of the predictions with this layer alone in integers
            from those with none, on calibration images.
        in_float: whether the file computes it in float32; its weights are stored in 8 bits all the same.
    """

    name: str
    weights: int
    divergence: float
    in_float: bool


@dataclass(frozen=True)
class Quantized:
    """How an int8 file was made.

    Attributes:
        calibration: how the ranges of activations follow from their values.
        agreement: share of validation images with fp32's top-1 by calibration; of those that were compared.
        max_drop: percentage points that the upper end of `drop` keeps below; None: no limit was set.
        drop: of this file; plain: of the file with all layers in integers.
        paid: bytes that the layers in float cost, compared with that file; negative where they save some.
        layers: by their order in the network; without a limit none.
        images: calibration images of their divergences.
    """

    calibration: str
    agreement: dict[str, float]
    max_drop: float | None = None
    drop: Drop | None = None
    plain: Drop | None = None
    paid: int | None = None
    layers: tuple[LayerSensitivity, ...] = ()
    images: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"layers": [asdict(one) for one in self.layers]}

    @property
    def in_float(self) -> tuple[str, ...]:
        """Names of the layers that are computed in float32."""
        return tuple(one.name for one in self.layers if one.in_float)


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
        variant: name of its precision with the options of int8, as in the names of its files.
        flagged: whether it loses more than `limit` of the images.
        quantized: how int8 was made; None for other precisions.
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
    variant: str
    loss: ExportLosses
    flagged: bool
    limit: float
    quantized: Quantized | None
    weights_sha256: str | None
    data: ExportData
    temperature: float | None
    parity: Parity
    browser: BrowserParity | None
    classes: tuple[str, ...]
    shape: tuple[int, int, int, int]
    labels: tuple[int, ...]
    files: dict[str, str]
