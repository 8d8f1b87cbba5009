"""Pretrained networks of a search: those that are named, or the small ones of the catalog whose weights are here."""

from __future__ import annotations

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.search._space import Given
from smallalign_core.search._spec import WEIGHT_BYTES, SearchSpec
from smallalign_core.spec import GivenNetwork, LibraryNetwork, Network, RunSpec, Timm
from smallalign_core.spec.catalog import PRETRAINED
from smallalign_core.system import extras


def named(spec: SearchSpec, run: RunSpec, store: Store) -> tuple[Network, ...] | None:
    """The networks that a search names, with what their digests depend on filled in; None where it names none.

    Args:
        run: any run of the search, resolved.

    Raises:
        SmallAlignError: one of them does not work.
    """
    return None if spec.backbones is None else tuple(_filled(one, run, store) for one in spec.backbones)


def available(spec: SearchSpec, run: RunSpec, store: Store) -> tuple[Network, ...]:
    """The networks to start from: those that a resolved search names, or those whose weights are downloaded now.

    Args:
        run: any run of the search, resolved.
    """
    if spec.backbones is not None:
        return spec.backbones
    found = []
    for network in _downloaded(spec):
        try:
            found.append(_filled(network, run, store))
        except SmallAlignError:  # a damaged download is no reason to refuse a search that did not name it
            continue
    return tuple(found)


def _filled(network: Network, run: RunSpec, store: Store) -> Network:
    from smallalign_core.training.resolve import resolve

    plain = run.model_copy(update={"network": network, "teacher": None, "start": None})
    plain = plain.model_copy(update={"loss": RunSpec.model_fields["loss"].default})
    return resolve(store, plain, "cpu").network


def _downloaded(spec: SearchSpec) -> list[Timm]:
    """The students of the catalog whose weights are downloaded and, alone, take less than the largest file."""
    width = min(WEIGHT_BYTES[one] for one in spec.precisions)
    small = [
        one
        for one in PRETRAINED
        if one.role == "student" and (spec.max_bytes is None or width * one.params <= spec.max_bytes)
    ]
    if not small or not extras.installed("timm"):
        return []
    from smallalign_core.networks import where_weights_are

    return [Timm(name=one.name, pretrained=True) for one in small if where_weights_are(one.name) == "cache"]


def given(network: Network) -> Given:
    """A pretrained network as a candidate has it."""
    assert isinstance(network, GivenNetwork), "only networks of others start from weights"
    kind = f"{network.kind}:" if isinstance(network, LibraryNetwork) else ""
    return Given(f"{kind}{network.name} pretrained", network)
