"""The unlabeled images of the recipe `unlabeled`: those of each draw, at as many steps as the other recipes."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path

from smallalign_core import data
from smallalign_core.errors import BadData, BadSpec
from smallalign_core.spec.parts import REST
from smallalign_core.studies.scaling._spec import UNLABELED, ScalingStudySpec, draw_of, epochs_of

STEPS_APART = 0.1
"""Recipes with and without unlabeled images may differ by at most this share of their training steps."""


@functools.lru_cache(maxsize=16)
def of_draws(spec: ScalingStudySpec, cache: Path, _: str, most: int) -> tuple[tuple[str, str, int], ...]:
    """Digest and number of the unlabeled images of all draws, remembered as long as the labeled ones have the same
    fingerprint.

    Raises:
        BadData: there are none, or none are left beside the labeled images.
    """
    if UNLABELED not in spec.recipes:
        return ()
    replicates = spec.replicates if spec.budget is None else most
    found = []
    for images, replicate in itertools.product(spec.images, range(replicates)):
        draw = draw_of(spec, images, replicate).model_copy(update={"unlabeled": spec.unlabeled})
        try:
            pool = data.load(draw, cache).unlabeled
        except BadData as error:
            if spec.unlabeled != REST:
                raise
            raise BadSpec(
                f"recipe `{UNLABELED}` with `{REST}`: {error.wrong}",
                given=f"{images:,} images",
                do="set `data.images` to fewer than there are, or give smaller `images` or `fractions`",
            ) from None
        assert pool is not None
        _check_steps(spec, images, len(pool))
        found.append((f"{images} {replicate}", pool.fingerprint, len(pool)))
    return tuple(found)


def _check_steps(spec: ScalingStudySpec, images: int, unlabeled: int) -> None:
    """Whole epochs over few labeled and many unlabeled images may be far more steps than the other recipes have."""
    others, both = epochs_of(spec, images) * images, epochs_of(spec, images, unlabeled) * (images + unlabeled)
    if abs(both / others - 1) > STEPS_APART:
        least = math.ceil((images + unlabeled) / (2 * STEPS_APART * spec.student.batch))
        raise BadSpec(
            f"recipe `{UNLABELED}` would train for {both / others:.2g} times as many steps as the others",
            given=f"{images:,} labeled and {unlabeled:,} unlabeled images",
            do=f"set `steps` to at least {least:,}",
        )
