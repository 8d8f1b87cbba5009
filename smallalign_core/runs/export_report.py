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
class Footprint:
    """What one image costs a device, computed from the graph; see `export._activations` for what that leaves out.

    Attributes:
        peak_bytes: of activations that live at the same time, input and outputs included.
        macs: multiply-accumulates of convolutions and matrix products.
    """

    peak_bytes: int
    macs: int

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
class Selected:
    """Selective classification (El-Yaniv & Wiener, 2010): the share that is accepted, and the errors among these.

    Attributes:
        images: how many there were; accepted: how many of these.
        coverage: share accepted; risk: share of errors among the accepted; both with a 95% interval (Wilson).
        error: share of errors among all images.
    """

    images: int
    accepted: int
    coverage: float
    coverage_low: float
    coverage_high: float
    risk: float
    risk_low: float
    risk_high: float
    error: float


@dataclass(frozen=True)
class Elsewhere:
    """Test images of another dataset than the run's.

    Attributes:
        accepted: share that is accepted, with its 95% interval (Wilson).
        auroc: probability that the energy is higher for one of them than for a test image; 0.5: by chance.
    """

    data: str
    images: int
    accepted: float
    accepted_low: float
    accepted_high: float
    auroc: float


@dataclass(frozen=True)
class Acceptance:
    """What the output `accepted` of a file does.

    Attributes:
        target: the coverage that was set; images: validation images of its thresholds.
        thresholds: the least accepted probability of each class; own: how many classes have one of their own.
        test: coverage and risk on the test images.
        elsewhere: the same of another dataset; None if none was given.
    """

    target: float
    images: int
    thresholds: tuple[float, ...]
    own: int
    test: Selected
    elsewhere: Elsewhere | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"thresholds": list(self.thresholds)}

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Acceptance:
        """The same from `as_dict`."""
        other = written["elsewhere"]
        known = {"thresholds": tuple(written["thresholds"]), "test": Selected(**written["test"])}
        return cls(**{**written, **known, "elsewhere": other and Elsewhere(**other)})

    def words(self) -> str:
        """Coverage and risk, as text."""
        test = self.test
        covered = f"95% interval {test.coverage_low:.1%} to {test.coverage_high:.1%}"
        target = f"at least {self.target:.4g} of images like the {self.images:,} validation images"
        text = (
            f"Accepts {test.coverage:.1%} of {test.images:,} test images ({covered}; target: {target}). Errors among "
            f"the accepted: {test.risk:.2%} ({test.risk_low:.2%} to {test.risk_high:.2%}); among all: "
            f"{test.error:.2%}. "
            f"{self.own} of {len(self.thresholds)} classes have a threshold of their own."
        )
        if (other := self.elsewhere) is not None:
            text += (
                f" Of {other.images:,} images of {other.data}, {other.accepted:.1%} are accepted "
                f"({other.accepted_low:.1%} to {other.accepted_high:.1%}); AUROC of the energy {other.auroc:.3f}."
            )
        return text


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
class TargetParity:
    """Parity of a run's file for another runtime and PyTorch.

    Attributes:
        target: its name; runtime: title and version.
        sha256: of the file that `--to` names; bytes: of all its files.
    """

    target: str
    runtime: str
    sha256: str
    bytes: int
    parity: Parity


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
        footprint: activation memory and multiply-accumulates for one image.
        variant: name of its precision with the options of int8, as in the names of its files.
        flagged: whether it loses more than `limit` of the images.
        quantized: how int8 was made; None for other precisions.
        acceptance: what its output `accepted` does; None if there is none.
        temperature: folded into its probabilities.
        parity: ONNX Runtime against PyTorch; browser: the same of a user's browser, None before that was checked.
        targets: the same of the run's files for other runtimes, as far as there are any.
        shape: [N, H, W, C] of the images that a browser gets; labels: theirs.
        files: digests of the bundle's files.
    """

    bundle: int
    file: str
    bytes: int
    sha256: str
    opset: int
    footprint: Footprint
    run: str
    precision: str
    variant: str
    loss: ExportLosses
    flagged: bool
    limit: float
    quantized: Quantized | None
    acceptance: Acceptance | None
    weights_sha256: str | None
    data: ExportData
    temperature: float | None
    parity: Parity
    browser: BrowserParity | None
    targets: tuple[TargetParity, ...]
    classes: tuple[str, ...]
    shape: tuple[int, int, int, int]
    labels: tuple[int, ...]
    files: dict[str, str]


@dataclass(frozen=True)
class TargetData:
    """The dataset that a file for another runtime was compared on."""

    fingerprint: str


@dataclass(frozen=True)
class TargetReport:
    """A run's export for another runtime, which lies in its bundle as `parity-NAME.json`.

    Attributes:
        bundle: version of the bundle's files.
        target: name of the target; runtime: title and version of what converted and ran it.
        bytes: of all its files; sha256: of the one that `--to` names.
        footprint: activation memory and multiply-accumulates for one image.
        temperature: folded into its probabilities.
        parity: the runtime against PyTorch on all test images.
        limits: what the file does not do, in words.
        input_shape: [C, H, W] of the training images.
        labels: of all test images.
        files: digests of the bundle's files.
    """

    bundle: int
    target: str
    runtime: str
    bytes: int
    sha256: str
    footprint: Footprint
    run: str
    precision: str
    weights_sha256: str | None
    data: TargetData
    temperature: float | None
    loss: ExportLosses
    parity: Parity
    browser: None
    limits: tuple[str, ...]
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    files: dict[str, str]
