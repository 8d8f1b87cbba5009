"""int8 files: the calibration that agrees best with fp32, and as few layers in float as an accuracy limit allows.

The statistics are a fixed sequence of tests (Westfall & Krishen, 2001). Layers are ordered by their sensitivity on
calibration images, so before any validation image is looked at. The file with all layers in integers is tested first;
if it misses the limit, layers are quantized one after another, from the least sensitive on, until the first file that
misses it. A sequence that ends there has the error of one test, so that two tests, times the number of calibrations
compared, are what the level of the interval is corrected for (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import onnx
from numpy.typing import NDArray

from smallalign_core.data import ImageSet
from smallalign_core.errors import BadInput, WorkFailed
from smallalign_core.export._runtime import OnnxClassifier
from smallalign_core.metrics import divergence, score_interval
from smallalign_core.networks.quantize import Quantizer
from smallalign_core.runs.export_report import Drop, LayerSensitivity, Quantized, in_points
from smallalign_core.spec.precision import CALIBRATIONS, Calibration, FileOptions

ALPHA = 0.05
SEQUENCES = 2
"""The file with all layers in integers, and the sequence of those with some in float."""
SENSED = 256
"""Calibration images that sensitivities are computed on."""
DROP_STEP = 0.5
MOST = 10_000_000
"""Images, beyond which no number is named."""

Finish = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Made:
    """An int8 graph, and how it was made; `tested`: graphs whose loss was tested on the validation images."""

    graph: bytes
    how: Quantized
    tested: int = 1


def quantized(
    quantizer: Quantizer,
    how: FileOptions,
    finish: Finish,
    pixels: NDArray[np.uint8],
    val: ImageSet,
    reference: NDArray[np.float32],
) -> Made:
    """The graph in int8.

    Args:
        quantizer: of the graph.
        how: calibration and limit.
        finish: makes a file of a graph.
        pixels: calibration images, uint8 NHWC.
        val: the validation images.
        reference: logits of fp32 on them, float32 [N, classes].

    Raises:
        BadInput: so few validation images cannot show that the limit is met, whatever the file.
        WorkFailed: no file meets the limit, or none was shown to.
    """
    compared: tuple[Calibration, ...] = CALIBRATIONS if how.calibration is None else (how.calibration,)
    level = 1 - ALPHA / (SEQUENCES * len(compared))
    if how.max_drop is not None:
        _check_images(how.max_drop, len(val), level, len(compared))

    def answered(graph: bytes) -> NDArray[np.float32]:
        return OnnxClassifier(finish(graph)).logits_of(val)

    graphs = {one: fixed_width(quantizer.write(one)) for one in compared}
    logits = {one: answered(graph) for one, graph in graphs.items()}
    agreement = {one: float((found.argmax(1) == reference.argmax(1)).mean()) for one, found in logits.items()}
    error = {one: float(((found - reference) ** 2).mean()) for one, found in logits.items()}
    chosen = max(compared, key=lambda one: (agreement[one], -error[one]))
    plain = graphs[chosen]
    told = Quantized(chosen, {str(one): share for one, share in agreement.items()})
    if how.max_drop is None:
        return Made(plain, told)

    limit, whole = how.max_drop / 100, drop_of(reference, logits[chosen], val.labels, level)
    costs = sensitivities(quantizer, chosen, finish, pixels[np.linspace(0, len(pixels) - 1, SENSED).astype(int)])
    order = [int(at) for at in np.argsort(costs, kind="stable")]
    graph, kept, drop, tested = plain, frozenset[int](), whole, 1
    if whole.high > limit:
        found: tuple[bytes, frozenset[int], Drop] | None = None
        for count in range(len(order)):  # the last one is the plain file
            left = frozenset(order[count:])
            one = fixed_width(quantizer.write(chosen, floats=left))
            tested += 1
            now = drop_of(reference, answered(one), val.labels, level)
            if now.high > limit:
                if found is None:
                    raise _not_met(how.max_drop, now)
                break
            found = one, left, now
        assert found is not None, "an empty sequence: there is no layer, so nothing that misses the limit"
        graph, kept, drop = found
    layers = tuple(
        LayerSensitivity(layer.name, layer.numbers, cost, at in kept)
        for at, (layer, cost) in enumerate(zip(quantizer.layers, costs, strict=True))
    )
    return Made(
        graph,
        Quantized(
            *(chosen, told.agreement, how.max_drop, drop, whole, len(graph) - len(plain)),
            layers=layers,
            images=min(SENSED, len(pixels)),
        ),
        tested,
    )


def fixed_width(graph: bytes) -> bytes:
    """The same graph with raw constants: protobuf's own integers, such as zero points, take more bytes the larger they
    are."""
    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        if not tensor.HasField("raw_data"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    return bytes(model.SerializeToString())


def sensitivities(
    quantizer: Quantizer, calibration: Calibration, finish: Finish, pixels: NDArray[np.uint8]
) -> list[float]:
    """For each layer the mean divergence, in nats, of predictions with it alone in integers from those with none."""
    everything = range(len(quantizer.layers))

    def answered(floats: Sequence[int]) -> NDArray[np.float32]:
        return OnnxClassifier(finish(fixed_width(quantizer.write(calibration, floats=floats)))).logits(pixels)

    reference = answered(everything)
    return [
        float(divergence(reference, answered([other for other in everything if other != one])).mean())
        for one in everything
    ]


def drop_of(
    reference: NDArray[np.float32], found: NDArray[np.float32], labels: NDArray[np.int64], level: float
) -> Drop:
    """What `found` loses against `reference`: logits [N, C] of the images with these labels [N]."""
    right, was = found.argmax(1) == labels, reference.argmax(1) == labels
    lost, gained = int((was & ~right).sum()), int((right & ~was).sum())
    low, high = score_interval(lost, gained, len(labels), level)
    return Drop(len(labels), lost, gained, (lost - gained) / max(1, len(labels)), low, high, level)


def images_without_difference(limit: float, level: float) -> int:
    """Images that show a loss below `limit` (a share) at a level, if on none of them the two files differ."""
    square = NormalDist().inv_cdf((1 + level) / 2) ** 2
    return math.ceil(square * (1 - limit) / limit)


def least_drop(images: int) -> float:
    """The smallest multiple of `DROP_STEP` points, as `max_drop`, that so many validation images can show."""
    level = 1 - ALPHA / (SEQUENCES * len(CALIBRATIONS))
    return DROP_STEP * math.ceil(_least_shown(images, level) * 100 / DROP_STEP)


def _least_shown(images: int, level: float) -> float:
    """The smallest loss (a share) that so many images can show; see `images_without_difference`."""
    square = NormalDist().inv_cdf((1 + level) / 2) ** 2
    return square / (images + square)


def images_needed(drop: Drop, limit: float) -> int | None:
    """Images that would show a loss below `limit` if the two files differed as often; None if none would."""
    if drop.loss >= limit or not drop.images:
        return None

    def shown(images: int) -> bool:
        share = images / drop.images
        lost, gained = math.ceil(drop.lost * share), math.floor(drop.gained * share)
        return score_interval(lost, gained, images, drop.level)[1] <= limit

    low, high = drop.images, 2 * drop.images
    while not shown(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > max(1, high // 100):  # two digits are all that this is worth
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def _check_images(points: float, images: int, level: float, compared: int) -> None:
    needed = images_without_difference(points / 100, level)
    if images >= needed:
        return
    fewer = images_without_difference(points / 100, 1 - ALPHA / SEQUENCES)
    least = math.ceil(10000 * _least_shown(images, level)) / 100
    alone = f" ({fewer:,} with --calibration)" if compared > 1 else ""
    raise BadInput(
        f"{images:,} validation images cannot show that at most {points:g} points of accuracy are lost, even if no "
        "prediction changes",
        given=f"--max-drop {points:g}",
        do=f"use a limit of {least:g} points or more, or a run with at least {needed:,} validation images{alone}",
    )


def _not_met(points: float, drop: Drop) -> WorkFailed:
    found = f"--max-drop {points:g}; {in_points(drop.as_dict())}"
    needed = images_needed(drop, points / 100)
    if needed is None:
        return WorkFailed(
            "int8 loses more accuracy than allowed even with all layers computed in float",
            given=found,
            do="export it as fp16, or allow a larger drop",
        )
    return WorkFailed(
        "not shown that int8 keeps the limit, even with all layers computed in float",
        given=found,
        do=f"about {needed:,} validation images would decide it; or allow a larger drop, or export as fp16",
    )
