"""Pareto front: dominance by brute force, limits, and latencies that are really measured."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import command

from smallalign_core import data, export
from smallalign_core.analysis import compare, pareto
from smallalign_core.analysis.pareto import Candidate, Limits, ParetoFront
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import comparison_api
from smallalign_core.service.requests import FindParetoFront
from smallalign_core.system import resumable


def candidate(id: str, bytes: int, ms: float, accuracy: float) -> Candidate:
    return Candidate(id, id, 10, 10, bytes, ms, ms, True, accuracy, 0.0, 1.0, 0.1, 0.1)


def test_who_is_dominated_by_brute_force() -> None:
    draw = np.random.default_rng(0)
    figures = draw.integers(1, 5, size=(40, 3)).tolist()
    runs = [candidate(str(n), size, float(ms), share / 10) for n, (size, ms, share) in enumerate(figures)]
    costs = [(one.bytes, one.p50_ms, -one.accuracy) for one in runs]

    found = pareto.evaluated(runs, Limits())

    for one, cost in zip(found, costs, strict=True):
        better = [other for other in costs if all(a <= b for a, b in zip(other, cost, strict=True)) and other != cost]
        assert (one.dominated_by is not None) == bool(better)
    assert 1 < sum(one.dominated_by is None for one in found) < 40
    for one, other in itertools.permutations(found, 2):
        if one.dominated_by == other.id:
            assert (other.bytes, other.p50_ms) <= (one.bytes, one.p50_ms) or other.p50_ms <= one.p50_ms
            assert other.accuracy >= one.accuracy


def test_equal_runs_do_not_dominate_each_other() -> None:
    twins = pareto.evaluated([candidate("a", 1, 1.0, 0.5), candidate("b", 1, 1.0, 0.5)], Limits())

    assert [one.dominated_by for one in twins] == [None, None]


def test_limits_in_words() -> None:
    runs = [
        candidate("big", 900_000, 3.0, 0.99),
        candidate("small", 50_000, 0.2, 0.95),
        candidate("bad", 60_000, 0.3, 0.9),
    ]
    found = pareto.evaluated(runs, Limits(kb=100, ms=1.0, accuracy=0.94))
    told = pareto.words(ParetoFront("val", 100, 1, "cpu", "1.0", Limits(kb=100, ms=1.0, accuracy=0.94), found))

    assert [one.fails for one in found] == [("kb", "ms"), (), ("accuracy",)]
    assert told.startswith("small passes all limits (at most 100 kB, at most 1 ms (p50), at least 94.00% accuracy).")
    assert "bad is dominated: small is no larger" in told
    assert "select on validation" not in told


@pytest.mark.parametrize(("size", "fails"), [(100_000, ()), (100_001, ("kb",)), (102_400, ("kb",))])
def test_a_kilobyte_is_1000_bytes(size: int, fails: tuple[str, ...]) -> None:
    (found,) = pareto.evaluated([candidate("a", size, 1.0, 0.5)], Limits(kb=100))
    assert found.fails == fails


@pytest.mark.parametrize(
    ("limits", "fails"),
    [
        ({"ms": 1.0}, ()),
        ({"ms": 0.99}, ("ms",)),
        ({"accuracy": 0.5}, ()),
        ({"accuracy": 0.51}, ("accuracy",)),
    ],
)
def test_a_limit_itself_passes(limits: dict[str, float], fails: tuple[str, ...]) -> None:
    (found,) = pareto.evaluated([candidate("a", 1, 1.0, 0.5)], Limits(**limits))
    assert found.fails == fails


@pytest.mark.parametrize(
    "wrong", [{"kb": 0.0}, {"ms": -1.0}, {"accuracy": 1.5}, {"kb": float("inf")}, {"ms": float("nan")}]
)
def test_limits_that_nothing_could_pass_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="limit"):
        Limits(**wrong).check()


def test_a_size_limit_holds_for_the_precision_that_is_named() -> None:
    sizes = {"fp32": 90_000, "fp16": 50_000, "int8": None}
    one = replace(candidate("a", 90_000, 1.0, 0.9), sizes=sizes)

    assert pareto.failed(one, Limits(kb=50.0)) == ("kb",)
    assert pareto.failed(one, Limits(kb=50.0, precision="fp16")) == ()
    assert pareto.failed(one, Limits(kb=49.999, precision="fp16")) == ("kb",)  # 1 kB is 1,000 bytes
    assert pareto.failed(one, Limits(kb=50.0, precision="int8")) == ("kb",), "it cannot be written so"
    with pytest.raises(BadInput, match="precision"):
        Limits(precision="fp8").check()


def test_calls_are_timed_in_milliseconds_at_least_three(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 5.0

    def answer() -> None:
        nonlocal now
        now += 0.004

    monkeypatch.setattr(pareto.time, "perf_counter", lambda: now)
    assert pareto._timed(answer, 0.019) == pytest.approx([4.0] * 5)
    assert pareto._timed(answer, 0.001) == pytest.approx([4.0] * 3)


@pytest.mark.parametrize(
    ("medians", "windows", "steady"),
    [
        ([5.0, 5.0, 5.0], 3, True),  # agreeing from the start, the warm-up still takes its minimum
        ([9.0, 7.0, 5.0, 4.4, 4.1], 5, True),  # 4.4 is 12% below 5, 4.1 is 7% below 4.4
        ([1.0, 9.0] * 10, 20, False),  # never: it ends at the maximum
    ],
)
def test_the_warm_up_ends_when_two_windows_agree(
    medians: list[float], windows: int, steady: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Medians of 0.15 s each, 0.45 to 3 s of warm-up, 0.9 s of measurement; a tenth is agreement."""
    calls: list[float] = []

    def timed(_: object, seconds: float) -> list[float]:
        calls.append(seconds)
        return [medians[len(calls) - 1]] if len(calls) <= windows else [2.0, 2.0, 2.0, 8.0]

    monkeypatch.setattr(pareto, "_timed", timed)
    monkeypatch.setattr(pareto, "_answering", lambda *_: ({"fp32": 7}, None))
    monkeypatch.setattr(pareto, "_file", lambda *_: tmp_path / "latency.json")
    store = Store(tmp_path)
    work = pareto._measured(None, None, store)  # type: ignore[arg-type]
    shares = []
    while True:
        try:
            shares.append(next(work))
        except StopIteration as end:
            found = end.value
            break
    assert len(calls) == windows + 6
    assert found.steady is steady
    assert (found.p50_ms, found.samples) == (2.0, 24)
    assert shares == sorted(shares)
    assert max(shares[: windows + 1]) <= 0.5
    assert shares[-1] == 1


def test_the_table_has_a_dash_for_what_is_not_known() -> None:
    known, unknown = candidate("a", 2_000, 1.0, 0.9), replace(candidate("b", 1_000, 2.0, 0.8), params=None, macs=None)
    front = pareto.ParetoFront("val", 10, 1, "a processor", "1.0", Limits(), [known, unknown])
    head, first, second, *_ = pareto.table(front).splitlines()
    assert first.split()[:3] == ["a", "10", "10"]
    assert second.split()[:3] == ["b", "-", "-"]
    assert head.index("accuracy") + len("accuracy") == first.index("90.00%") + len("90.00%"), "aligned to the right"


@pytest.fixture(scope="module")
def measured(taught: tuple[Store, Run, Run]) -> ParetoFront:
    store, teacher, student = taught
    shares = []
    with pytest.MonkeyPatch.context() as short:
        for name, seconds in (("WINDOW", 0.02), ("WARM", (0.06, 0.2)), ("MEASURED", 0.2)):
            short.setattr(pareto, name, seconds)
        calls = FindParetoFront((teacher.id, student.id), "val", patience=0.0)
        while (answer := comparison_api.pareto_front(store, calls)).report is None:
            shares.append(answer.done)
    assert len(shares) > 4, "a page is never kept waiting for all of it"
    assert shares == sorted(shares)
    return answer.report


@pytest.mark.slow
def test_figures_are_those_of_the_run_and_of_its_file(
    measured: ParetoFront, taught: tuple[Store, Run, Run], tmp_path: Path
) -> None:
    store, teacher, student = taught
    for run, one in zip((teacher, student), measured.candidates, strict=True):
        result = run.result or {}
        assert one.bytes == one.sizes["fp32"]
        for precision, size in one.sizes.items():
            file = tmp_path / f"{run.id}-{precision}.onnx"
            assert export.export(run, file, store, precision=precision)["bytes"] == file.stat().st_size == size
        assert (one.params, one.macs) == (result["params"], result["macs"])
        assert one.accuracy == pytest.approx(result["val"]["accuracy"])
        assert one.ece == pytest.approx(result["val"]["ece"])
        assert 0 < one.p50_ms <= one.p95_ms
        kept = pareto.kept(run, store)
        assert kept is not None
        assert kept.threads == measured.threads == 1
        assert kept.samples >= 18
        assert kept.processor
    assert measured.candidates[0].bytes > measured.candidates[1].bytes


@pytest.mark.slow
def test_latency_is_kept_for_run_and_machine(
    measured: ParetoFront, taught: tuple[Store, Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, teacher, student = taught
    again = FindParetoFront((teacher.id, student.id), "val", Limits(kb=5.0))
    found = comparison_api.pareto_front(store, again).report
    assert found is not None
    assert [one.p50_ms for one in found.candidates] == [one.p50_ms for one in measured.candidates]
    assert found.candidates[0].fails == ("kb",)

    monkeypatch.setattr(pareto, "processor", lambda: "another machine")
    assert pareto.kept(teacher, store) is None


@pytest.mark.slow
def test_a_slower_answer_is_measured_as_slower(taught: tuple[Store, Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, student = taught
    splits = data.load(student.data, store.data_cache)
    monkeypatch.setattr(pareto, "FORMAT", 99)
    monkeypatch.setattr(
        pareto, "_answering", lambda *_: ({"fp32": 7, "fp16": 5, "int8": None}, lambda: time.sleep(0.004))
    )
    found = resumable.finish(pareto._measured(student, splits, store))

    assert found.bytes == 7
    assert found.p50_ms >= 4
    assert found.samples <= 0.9 / 0.004


@pytest.mark.slow
def test_a_deleted_run_leaves_nothing_behind(store: Store, train) -> None:
    run, other = train(), train(seed=1)
    resumable.finish(pareto.pareto_front([run, other], data.load(run.data, store.data_cache), "val", store))
    assert list(compare.folder(store).glob(f"*{run.id}*"))

    store.delete(run.id)

    assert not list(compare.folder(store).glob(f"*{run.id}*"))


@pytest.mark.slow
def test_the_command_line_prints_the_table(taught: tuple[Store, Run, Run], tmp_path: Path) -> None:
    store, teacher, student = taught
    calls = [
        "compare",
        teacher.id,
        student.id,
        "--split",
        "val",
        "--max-kb",
        "1",
        "--robustness",
        "--report",
        tmp_path / "r.html",
    ]
    done = command(*calls, "--json", store=store)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["frontier"]["candidates"][0]["fails"] == ["kb"]
    assert len(found["robustness"]["runs"][1]["levels"]) == 60
    assert [Path(name).name for name in found["report"]] == ["r.html", "r.json"]
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    text = command("compare", teacher.id, student.id, "--split", "val", "--table", store=store).stdout
    assert "p50 ms" in text
    assert "1 thread" in text
    for wrong in (
        ["--max-kb", "0"],
        ["--min-accuracy", "95"],
        ["--report", tmp_path / "x.txt"],
        ["--report", "/nowhere/x.html"],
    ):
        refused = command("compare", teacher.id, student.id, *wrong, store=store)
        assert refused.returncode == 2, wrong
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
