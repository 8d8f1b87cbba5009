"""The run that prunes a finished one, and learns again from it or from a teacher."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from smallalign_core import networks
from smallalign_core.errors import BadInput, Refused
from smallalign_core.networks import Classifier, pruning
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import Pruned, RunSpec, parse

Of = Literal["macs", "params"]
SAME, SELF, NONE = "same", "self", "none"


def spec_of(
    run: Run,
    store: Store,
    share: float,
    *,
    of: Of = "macs",
    criterion: pruning.Criterion = "l2",
    teacher: str = SAME,
    epochs: int | None = None,
) -> RunSpec:
    """The spec of a run that starts from the strongest channels of a finished one.

    Args:
        share: of its multiply-accumulates or parameters that may be left, between 0 and 1.
        of: which of the two.
        criterion: norm of a group of weights.
        teacher: `same` as the run's (itself, if it has none), `self`, `none` for labels only, or the name of a run.
        epochs: as the run's if None; 0 evaluates the pruned weights as they are.

    Raises:
        BadInput: the network cannot be pruned, or not that far.
        Refused: the run is an import.
        BadModel: its weights cannot be read.
        MissingExtra: torch-pruning is not installed.
    """
    if run.imported is not None:
        raise Refused("an import cannot be pruned", given=run.name, do="choose a run that was trained by SmallAlign")
    if not 0 < share < 1:
        raise BadInput("the share to keep is out of range", given=f"{share:.1%}", do="give for example 50%")
    classifier = networks.from_file(run.weights, (run.result or {})["weights_sha256"])

    def size(one: Classifier) -> int:
        return int(getattr(networks.measure(one), of))

    pruned = pruning.plan(classifier, networks.head(classifier), size, share, criterion, _whole(classifier, run))
    return parse(_fields(run, store, pruned, teacher, epochs))


def _whole(classifier: Classifier, run: Run) -> nn.Module:
    """The body of the run's network before any pruning."""
    if run.spec.network.pruned is None:
        return classifier.body
    network = run.spec.network.model_copy(update={"pruned": None})
    mean = [1.0] * classifier.mean.numel()
    return networks.build(network, classifier.classes, classifier.input_shape, mean=mean, std=mean).body


def _fields(run: Run, store: Store, pruned: Pruned, teacher: str, epochs: int | None) -> dict[str, Any]:
    spec = run.spec
    fields = spec.model_dump()
    fields["network"] |= {"pruned": pruned.model_dump()}
    fields["network"] |= {
        name: type(spec.network).model_fields[name].default for name in networks.START if name in fields["network"]
    }
    fields |= {"start": run.id, "epochs": spec.epochs if epochs is None else epochs}
    if fields["epochs"] == 0:
        return fields | {"teacher": None, "loss": None, "shuffled": False}
    if teacher == SAME and spec.teacher is not None:
        return fields
    if teacher in (SAME, SELF):
        return fields | {"teacher": run.id, "loss": None}
    if teacher == NONE:
        return fields | {"teacher": None, "loss": None, "shuffled": False}
    return fields | {"teacher": store.finished(teacher).id, "loss": None}
