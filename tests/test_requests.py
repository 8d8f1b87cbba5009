"""Requests of pages and their answers: each has a handler, both survive JSON, and damage is named in words."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from smallalign_core import search
from smallalign_core.errors import BadInput, WorkFailed
from smallalign_core.runs.store import Store
from smallalign_core.search import SearchSpec
from smallalign_core.service import backend, requests
from smallalign_core.service.client import BackendClient
from smallalign_core.service.handlers import HANDLERS
from smallalign_core.service.requests import DatasetFacts, Inspect
from smallalign_core.service.wire import LongRequest, Progress, Request
from smallalign_core.spec import Augment, DataSpec, Loss, RunSpec, parse_data, parse_policy
from smallalign_core.studies import optimizers, scaling
from smallalign_core.studies.kinds import AnyStudySpec
from smallalign_core.system import typed
from tests.conftest import ROOT, SCALING, tiny

DIGITS = {"verb": "Inspect", "values": {"data": {"source": "digits"}}, "user": "ada", "role": "runner"}


EVIDENCE: dict[str, Any] = {
    **{name: "x" for name in ("teacher", "digest", "data", "validation")},
    **{name: 1 for name in ("side", "learned", "images")},
    **{name: 0.5 for name in ("accuracy", "accuracy_low", "accuracy_high", "chance", "nll", "ece")},
    **{"temperature": 1.5, "calibrated_ece": 0.1, "suggested": [1, 4.5], "refused": None, "warnings": []},
}
COST: dict[str, Any] = {
    **{"id": "0" * 16, "preflight": EVIDENCE, "loss": {"kind": "kd"}, "state": None, "params": 868, "macs": 9_000},
    **{
        "onnx_bytes": 4_000,
        "sizes": {"fp32": 4_000, "int8": None},
        "steps": 30,
        "unlabeled": 0,
        "unexportable": None,
        "seconds": 1.5,
        "device": "cpu",
    },
    **{"cache_bytes": 0, "cache_ready": 0},
}
STUDENT: dict[str, Any] = {"data": "digits", "network": "cnn"}
STUDIES = [optimizers.parse_study(STUDENT | {"seeds": 2}), scaling.parse_study(SCALING)]
PARTS: list[tuple[Any, list[Any]]] = [
    (RunSpec, [tiny(), tiny(teacher="digits-teacher", loss="kd", augment=["shift", "mixup"], optimizer="muon")]),
    (DataSpec, [parse_data("digits"), parse_data({"source": "somewhere", "size": 32, "fingerprint": "ab" * 8})]),
    (Augment, list(parse_policy(["shift", {"kind": "rotate", "degrees": 7}]))),
    (Loss, [tiny().loss, tiny(teacher="digits-teacher", loss={"kind": "kd", "temperature": 3}).loss]),
    (AnyStudySpec, STUDIES),
    (AnyStudySpec | SearchSpec, [*STUDIES, search.parse_study({"data": "digits", "max_kb": 20, "min_share": 0.98})]),
]
"""Parts of a spec, which have tests of their own: some of each."""


def examples(of: Any) -> st.SearchStrategy[Any]:
    """Values of a type of a request or an answer."""
    if known := [some for kind, some in PARTS if kind == of]:
        return st.sampled_from(known[0])
    kind, parts = get_origin(of) or of, get_args(of)
    if kind is Annotated:
        return examples(parts[0])
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        if parts:  # generic: its field of that type
            hints["report"] = parts[0] | None
        return st.builds(kind, **{field.name: examples(hints[field.name]) for field in dataclasses.fields(kind)})
    if kind in (Union, types.UnionType):
        return st.one_of([examples(part) for part in parts])
    if kind is Literal:
        return st.sampled_from(parts)
    if kind is tuple and parts[-1] is not ...:
        return st.tuples(*map(examples, parts))
    if kind in (list, tuple):
        return st.lists(examples(parts[0]), max_size=3).map(kind)
    if kind in (dict, Mapping):
        return st.dictionaries(examples(parts[0]), examples(parts[1]), max_size=3)
    plain = {str: st.text(max_size=9), int: st.integers(-(2**53), 2**53), bool: st.booleans(), type(None): st.none()}
    found: st.SearchStrategy[Any] = {**plain, float: st.floats(allow_nan=False), Any: st.text(max_size=9)}[kind]
    return found


def subclasses(of: type) -> set[type[Request[Any]]]:
    found = {one for one in vars(requests).values() if isinstance(one, type) and issubclass(one, of)}
    return found - {Request, LongRequest}


@pytest.mark.parametrize("request_", sorted(HANDLERS, key=lambda one: one.verb()), ids=lambda one: one.verb())
class TestEach:
    def test_its_handler_takes_it_and_returns_its_answer(self, request_: type[Request[Any]]) -> None:
        hints = get_type_hints(HANDLERS[request_])
        assert list(hints.values()) == [Store, request_, request_.answer()]
        assert issubclass(request_, LongRequest) == issubclass(
            get_origin(request_.answer()) or request_.answer(), Progress
        )

    @pytest.mark.parametrize("what", ["request", "answer"])
    @settings(max_examples=15, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(data=st.data())
    def test_it_survives_json(self, request_: type[Request[Any]], what: str, data: st.DataObject) -> None:
        of = request_ if what == "request" else request_.answer()
        made = data.draw(examples(of))
        assert typed.decode(of, json.loads(typed.encode(made)), WorkFailed, "wrong", "do") == made

    @pytest.mark.parametrize("what", ["request", "answer"])
    def test_unknown_and_missing_fields_are_refused_in_words(self, request_: type[Request[Any]], what: str) -> None:
        of = request_ if what == "request" else request_.answer()
        with pytest.raises(BadInput, match=r"Damaged.*unknown field `bogus`.*Restart"):
            typed.decode(of, {"bogus": 1}, BadInput, "damaged", "restart")
        with pytest.raises(BadInput, match=r"Damaged.*\(given: .*\).*Restart"):
            typed.decode(of, "not fields at all", BadInput, "damaged", "restart")


def test_every_request_has_a_handler() -> None:
    assert subclasses(Request) == set(HANDLERS)
    assert len(backend.VERBS) == len(HANDLERS), "two requests have the same name"


def test_the_dashboard_s_process_imports_them_without_torch() -> None:
    code = (
        "import sys, smallalign_core.service.requests; print({'torch', 'onnx', 'sklearn', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_fields_below_are_named_by_their_path() -> None:
    """Also in dataclasses of the library, of which pydantic ignores unknown fields by itself."""
    found = COST | {"preflight": EVIDENCE | {"bogus": 1}}
    with pytest.raises(WorkFailed, match=r"\(given: unknown field `preflight\.bogus`\)"):
        typed.decode(requests.Cost, found, WorkFailed, "wrong", "do")


def answered(store: Store, **changes: Any) -> dict[str, Any]:
    out = io.StringIO()
    backend.serve(store, io.StringIO(json.dumps(DIGITS | changes) + "\n"), out)
    reply: dict[str, Any] = json.loads(out.getvalue())
    return reply


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verb": "Abolish"}, r"no such request \(given: Abolish\)\. Restart the dashboard"),
        ({"values": {"data": {"source": "digits"}, "fast": True}}, r"unknown field `fast`\)\. Restart the dashboard"),
        ({"values": {}}, r"`data` is missing\)\. Restart the dashboard"),
        ({"values": None}, r"The request Inspect cannot be read .*Restart the dashboard"),
    ],
)
def test_a_request_of_another_version_is_refused(store: Store, changes: dict[str, Any], words: str) -> None:
    reply = answered(store, **changes)
    assert reply["bad_input"]
    assert re.search(words, reply["error"]), reply


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"ok": {"reader": "arrays"', "EOF"),
        ('{"ok": {"reader": "arrays"}}', "`images` is missing"),
        ('{"ok": null}', "dictionary"),
    ],
)
def test_a_damaged_answer_is_an_error_in_three_parts(
    store: Store, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.setattr(BackendClient, "_exchange", lambda *_: line)
    with pytest.raises(WorkFailed, match=rf"answer to Inspect cannot be read \(given: .*{words}.*\)\. Try again"):
        BackendClient(store).call(Inspect(parse_data("digits")))


def test_an_answer_comes_as_its_dataclass(store: Store, backend_here: None) -> None:
    facts = BackendClient(store).call(Inspect(parse_data("digits")))
    assert isinstance(facts, DatasetFacts)
    assert facts.shape == (1, 8, 8)
    assert facts.classes == tuple("0123456789")
    assert sum(facts.counts["test"].values()) + sum(facts.counts["train"].values()) < facts.images == 1797


@pytest.mark.parametrize("number", [math.inf, -math.inf, 0.1 + 0.2, 5e-324, -0.0])
def test_numbers_come_through_exactly(number: float) -> None:
    sent = COST | {"seconds": number}
    kept = typed.decode(requests.Cost, json.loads(typed.encode(sent)), WorkFailed, "wrong", "do").seconds
    assert (kept, math.copysign(1, kept)) == (number, math.copysign(1, number))
