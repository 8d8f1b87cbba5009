"""The landscape: against closed forms and exact Hessians, batch norm modes, in steps, kept, judged and refused."""

from __future__ import annotations

import copy
import gc
import json
import threading
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Train, command, tiny
from scipy import stats
from torch import Tensor, nn

from smallalign_core import data, networks
from smallalign_core.analysis import landscape
from smallalign_core.analysis.landscape import LandscapeSpec, _measures, _sizes, _surface
from smallalign_core.analysis.landscape._surface import Part, Surface
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, Refused
from smallalign_core.networks import Classifier
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import MeasureLandscape
from smallalign_core.spec import RunSpec
from smallalign_core.system.resumable import by_callback, finish
from smallalign_core.training import losses
from smallalign_core.training.loop import Training
from smallalign_core.training.losses import NetworkOutput

MODES = ("eval", "train", "reestimate")


def done(work: Any) -> Any:
    return finish(work)


def few(digits: Splits, batches: int = 2, size: int = 24, wanted: int = 0) -> list[Part]:
    """Batches of training images, with a teacher's random logits if it is asked for."""
    torch.manual_seed(1)
    return [
        Part(
            torch.from_numpy(digits.train.images[one]),
            torch.from_numpy(digits.train.labels[one]),
            NetworkOutput(torch.randn(size, wanted)) if wanted else None,
        )
        for one in np.arange(batches * size).reshape(batches, size)
    ]


def small(digits: Splits, seed: int = 0) -> tuple[RunSpec, Classifier]:
    """A network of 106 weights with batch norm whose running statistics are not those of any batch."""
    spec = tiny(network={"kind": "cnn", "width": 4, "depth": 1})
    classifier = networks.build(spec.network, digits.classes, digits.shape, mean=[0.3], std=[0.4], seed=seed)
    with torch.no_grad():
        networks.head(classifier).weight.mul_(10)  # type: ignore[operator,union-attr]  # no longer the same for all
        for _ in range(3):
            classifier.train()(torch.from_numpy(digits.train.images[100:130]))
    return spec, classifier.eval()


# --- curvature --------------------------------------------------------------------------------------------------------


def test_curvature_of_a_quadratic_is_the_closed_form(digits: Splits) -> None:
    """A linear network under ½ mean squares of two centred logits: half of the second moment of the images."""
    spec = tiny(teacher="t", loss={"kind": "logit_mse"})
    spec = spec.model_copy(update={"loss": spec.loss.model_copy(update={"weight": 1.0})})
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    classifier = Classifier(body, ("a", "b"), digits.shape, [0.3], [0.4])
    parts = few(digits, 4, 32, wanted=2)
    surface = Surface(spec, classifier, parts, "eval")
    x = torch.cat([classifier.prepare(part.images).flatten(1) for part in parts]).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    moments = torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0) / 2
    found = done(_measures.curvature(surface, eigenvalues=12, probes=40, seed=0))
    expected = moments[:12]  # centring leaves one direction of two
    np.testing.assert_allclose(found["eigenvalues"], expected, rtol=2e-3)
    assert abs(found["trace"] - float(moments.sum())) < 4 * found["trace_se"]
    assert found["scaled"] == pytest.approx(float(expected[0]) * float(surface.start.square().sum()), rel=2e-3)


def exact(surface: Surface) -> Tensor:
    """The full Hessian by torch's own function, through weights that the surface knows nothing of."""
    network, names = surface.network, [name for name, _ in surface.network.named_parameters()]
    shapes = [weight.shape for weight in surface.weights]
    sizes = [weight.numel() for weight in surface.weights]

    def loss(vector: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(vector.split(sizes), shapes, strict=True)]
        given = dict(zip(names, pieces, strict=True))
        each = [
            nn.functional.cross_entropy(torch.func.functional_call(network, given, (part.images,)), part.labels)
            for part in surface.parts
        ]
        return torch.stack(each).mean()

    return torch.autograd.functional.hessian(loss, surface.start)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("norms", MODES)
def test_curvature_is_that_of_the_exact_hessian(norms: Any, digits: Splits) -> None:
    spec, classifier = small(digits)
    surface = Surface(spec, classifier, few(digits), norms)
    hessian = exact(surface).double()
    values = torch.linalg.eigvalsh((hessian + hessian.T) / 2).flip(0)
    found = done(_measures.curvature(surface, eigenvalues=4, probes=60, seed=3))
    np.testing.assert_allclose(found["eigenvalues"], values[:4], rtol=2e-3)
    trace, off = float(hessian.trace()), float(hessian.square().sum() - hessian.diagonal().square().sum())
    assert abs(found["trace"] - trace) < 4 * found["trace_se"]
    # Hutchinson's variance with random signs is twice the squares off the diagonal (Avron & Toledo, 2011).
    assert found["trace_se"] == pytest.approx((2 * off / 60) ** 0.5, rel=0.4)


# --- batch norm -------------------------------------------------------------------------------------------------------


def test_modes_are_what_they_say_and_nothing_is_touched(digits: Splits) -> None:
    spec, classifier = small(digits)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    parts = few(digits)
    cross = nn.functional.cross_entropy
    expected = {}
    with torch.no_grad():
        expected["eval"] = np.mean([float(cross(classifier(part.images), part.labels)) for part in parts])
        batch = copy.deepcopy(classifier).train()
        expected["train"] = np.mean([float(cross(batch(part.images), part.labels)) for part in parts])
        anew = copy.deepcopy(classifier)
        norm: Any = anew.body[1]  # type: ignore[index]
        met = [anew.body[0](anew.prepare(part.images)) for part in parts]  # type: ignore[index,operator]
        norm.running_mean.copy_(torch.stack([one.mean((0, 2, 3)) for one in met]).mean(0))
        norm.running_var.copy_(torch.stack([one.var((0, 2, 3)) for one in met]).mean(0))
        expected["reestimate"] = np.mean([float(cross(anew(part.images), part.labels)) for part in parts])
    for norms in MODES:
        surface = Surface(spec, classifier, parts, norms)  # type: ignore[arg-type]
        buffers = {name: tensor.clone() for name, tensor in surface.network.named_buffers()}
        *_, loss = surface.value()
        assert loss == pytest.approx(expected[norms], rel=1e-5), norms
        done(_measures.line(surface, directions=1, points=5, reach=1, seed=0))
        done(_measures.predictiveness(surface))
        assert torch.equal(_surface.flat(surface.weights), surface.start)
        for name, tensor in surface.network.named_buffers():
            torch.testing.assert_close(tensor, buffers[name])
    assert len({round(float(value), 5) for value in expected.values()}) == 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


# --- slices -----------------------------------------------------------------------------------------------------------


def test_directions_are_filter_normalised_and_shared(digits: Splits) -> None:
    """Li et al. (2018), section 4: by filter; biases and batch norms do not move."""
    (spec, one), (_, other) = small(digits), small(digits, seed=7)
    parts = few(digits)
    surfaces = [Surface(spec, each, parts, "eval") for each in (one, other)]
    (first, second), (same, _) = (surface.directions(2, 5) for surface in surfaces)
    offset, ratios = 0, []
    for mine, theirs in zip(surfaces[0].weights, surfaces[1].weights, strict=True):
        pieces = [vector[offset : offset + mine.numel()].view(mine.shape) for vector in (first, second, same)]
        offset += mine.numel()
        if mine.ndim <= 1:
            assert not any(piece.any() for piece in pieces)
            continue
        for moved, weight in zip(pieces, (mine, mine, theirs), strict=True):
            torch.testing.assert_close(moved.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
        unit = [nn.functional.normalize(piece.flatten(1), dim=1) for piece in pieces]
        torch.testing.assert_close(unit[0], unit[2])  # the same Gaussian in both networks
        ratios.append(float((unit[0] * unit[1]).sum(1).abs().max()))
    assert max(ratios) < 0.99
    assert torch.equal(surfaces[0].directions(5, 5)[1], second)


def at(classifier: Classifier, vector: Tensor, parts: list[Part]) -> float:
    """The loss at these weights, by torch alone."""
    moved = copy.deepcopy(classifier)
    nn.utils.vector_to_parameters(vector, moved.parameters())
    with torch.no_grad():
        return float(np.mean([float(nn.functional.cross_entropy(moved(p.images), p.labels)) for p in parts]))


def test_line_and_plane_are_losses_where_they_say(digits: Splits) -> None:
    spec, classifier = small(digits)
    parts = few(digits)
    classifier.channels_last = False
    surface = Surface(spec, classifier, parts, "eval")
    one, other = surface.directions(2, 0)
    line = done(_measures.line(surface, directions=2, points=11, reach=1, seed=0))
    assert line["losses"][1][8] == pytest.approx(at(classifier, surface.start + 0.6 * other, parts), rel=1e-4)
    assert line["losses"][0][5] == line["losses"][1][5] == pytest.approx(at(classifier, surface.start, parts), rel=1e-5)
    table = np.array(line["losses"])
    assert line["rise"] == pytest.approx((table[:, [4, 6]].mean(1) - table[:, 5]).mean())
    plane = done(_measures.plane(surface, points=5, reach=1, seed=0))
    there = surface.start - 0.5 * one + 1.0 * other
    assert plane["losses"][4][1] == pytest.approx(at(classifier, there, parts), rel=1e-4)


def test_local_maxima_are_counted(monkeypatch: pytest.MonkeyPatch, digits: Splits) -> None:
    spec, classifier = small(digits)
    surface = Surface(spec, classifier, few(digits, 1), "eval")

    def losses_of(*_: Any) -> Generator[float, None, list[float]]:
        yield 0.5
        return [3, 1, 2, 1, 2, 1, 3, 4, 2, 1, 2, 3, 4, 5]

    monkeypatch.setattr(_measures, "_losses", losses_of)
    line = done(_measures.line(surface, directions=2, points=7, reach=1, seed=0))
    assert line["maxima"] == 1.0  # two on the first line, none on the second


def test_the_way_between_two_solutions(digits: Splits) -> None:
    """To the same solution with its channels in another order, there is a barrier though both are equal; the ends are
    the runs' own losses, also of their running statistics; there is no barrier to oneself.
    """
    spec = tiny(network={"kind": "cnn", "width": 4, "depth": 1}, optimizer={"kind": "adamw", "lr": 0.03}, epochs=6)
    training = Training([spec], digits)
    list(training)
    one = training.students[0].best()
    other = copy.deepcopy(one)
    with torch.no_grad():
        for name, tensor in other.state_dict().items():
            if tensor.ndim and name.startswith("body"):
                tensor.copy_(
                    tensor.flip(1) if tensor.shape == (10, 4) else tensor.flip(0) if len(tensor) == 4 else tensor
                )
    parts = few(digits)
    ends = [Surface(spec, each, parts, "eval") for each in (one, other)]
    found = done(_measures.path(*ends, points=9))
    one.channels_last = other.channels_last = False
    for place, classifier in ((0, one), (-1, other)):
        own = at(classifier, _surface.flat(list(classifier.parameters())).detach(), parts)
        assert found["losses"][place] == pytest.approx(own, rel=1e-4)
    half = copy.deepcopy(one)
    mixed = {
        name: (tensor + other.state_dict()[name]) / 2 if tensor.is_floating_point() else tensor
        for name, tensor in one.state_dict().items()
    }
    half.load_state_dict(mixed)
    middle = at(half, _surface.flat(list(half.parameters())).detach(), parts)
    assert found["losses"][4] == pytest.approx(middle, rel=1e-4)
    straight = np.linspace(found["losses"][0], found["losses"][-1], 9)
    assert found["barrier"] == pytest.approx(float(np.max(np.array(found["losses"]) - straight)))
    assert found["losses"][0] == pytest.approx(found["losses"][-1], rel=1e-4)
    assert found["barrier"] > 0.01
    again = done(_measures.path(ends[0], Surface(spec, one, parts, "eval"), points=5))
    assert again["barrier"] == pytest.approx(0, abs=1e-5)

    sheet = done(_measures.between(*ends, points=7, reach=0.6, seed=2))
    assert sheet["shares"] == pytest.approx(np.arange(-0.25, 1.3, 0.25))
    np.testing.assert_allclose(sheet["losses"][3][1:6], found["losses"][::2], rtol=1e-4)  # the way itself
    (beside,) = ends[0].directions(1, 2)
    there = at(half, _surface.flat(list(half.parameters())).detach() + sheet["at"][5] * beside, parts)
    assert sheet["losses"][5][3] == pytest.approx(there, rel=1e-4)
    past = 1.25 * ends[1].start - 0.25 * ends[0].start - 0.6 * beside
    assert sheet["losses"][0][6] == pytest.approx(at(other, past, parts), rel=1e-4), "statistics of the nearer end"
    assert torch.equal(_surface.flat(ends[0].weights), ends[0].start)


def test_a_plane_holds_few_copies_of_the_network(digits: Splits) -> None:
    """Of 51 x 51 places, all at once, a network of 11 million weights would take 114 GB."""
    spec, classifier = small(digits)
    one, other = (Surface(spec, copy.deepcopy(classifier), few(digits, 1), "eval") for _ in range(2))
    for work in (
        _measures.plane(one, points=5, reach=1.0, seed=0),
        _measures.between(one, other, points=5, reach=1.0, seed=0),
        _measures.line(one, directions=2, points=15, reach=1.0, seed=0),
    ):
        next(work)
        copies = [each for each in gc.get_objects() if type(each) is Tensor and each.shape == one.start.shape]
        work.close()
        assert 2 <= len(copies) < 12


def test_predictiveness_of_a_quadratic_is_the_closed_form(digits: Splits) -> None:
    """One step further the gradient is g - H s, and the loss has changed by -g s + s H s / 2."""
    spec = tiny(teacher="t", loss={"kind": "logit_mse"})
    spec = spec.model_copy(update={"loss": spec.loss.model_copy(update={"weight": 1.0})})
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    classifier = Classifier(body, digits.classes, digits.shape, [0.3], [0.4])
    surface = Surface(spec, classifier, few(digits, 3, 16, wanted=10), "eval")
    found = done(_measures.predictiveness(surface, strides=(0.05,)))
    (stride,) = found["strides"]
    for place, part in enumerate(surface.parts):
        _, slope = surface.gradient(part)
        step = slope / slope.norm() * 0.05 * surface.start.norm()
        bent = surface.curved(part, step)
        then = slope - bent
        assert stride["cosines"][place] == pytest.approx(float(slope @ then / slope.norm() / then.norm()), abs=1e-3)
        assert stride["changes"][place] == pytest.approx(float(-slope @ step + step @ bent / 2), rel=2e-2, abs=1e-4)
    assert stride["cosine"] == pytest.approx(np.mean(stride["cosines"]))
    assert found["batches"] == 3


# --- runs -------------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"images": 256, "directions": 2, "points": 5, "grid": 5, "eigenvalues": 1, "probes": 2}


@pytest.fixture(scope="module")
def pair(taught: tuple[Store, Run, Run]) -> tuple[Store, Run, Run]:
    return taught


def test_the_loss_is_the_runs_own_with_its_teacher(taught: tuple[Store, Run, Run]) -> None:
    store, teacher, student = taught
    report = landscape.landscape(store, [student.id], ["line"], **QUICK)["report"]
    splits = data.load(student.spec.data, store.data_cache)
    rows = _surface.rows(len(splits.train), 256, 128, 0)
    assert len(set(rows.flatten().tolist())) == 256
    one, other = networks.from_file(student.weights), networks.from_file(teacher.weights)
    means = []
    with torch.no_grad():
        for chosen in rows:
            images, labels = (
                torch.from_numpy(splits.train.images[chosen]),
                torch.from_numpy(splits.train.labels[chosen]),
            )
            said = NetworkOutput(other(images).half().float())
            means.append(float(sum(losses.terms(student.spec.loss, NetworkOutput(one(images)), said, labels).values())))
    assert report["runs"][0]["loss"] == pytest.approx(np.mean(means), rel=1e-4)
    assert report["norms"] == "eval"


def test_batch_norm_modes_differ_on_a_real_run_and_are_printed(taught: tuple[Store, Run, Run]) -> None:
    store, _, student = taught
    top = {}
    for norms in ("eval", "train"):
        report = landscape.landscape(store, [student.id], ["curvature"], norms=norms, **QUICK)["report"]
        top[norms] = report["runs"][0]["measures"]["curvature"]["eigenvalues"][0]
        numbers = [line for line in report["words"] if any(mark.isdigit() for mark in line)]
        assert numbers
        assert all(f"[batch norm: {norms}]" in line for line in numbers)
    assert abs(top["eval"] / top["train"] - 1) > 0.2


def test_it_is_done_in_steps_and_kept(taught: tuple[Store, Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, student = taught
    look: dict[str, Any] = {**QUICK, "seed": 11}
    cost = landscape.landscape(store, [student.id], ["line", "curvature"], start=False, **look)["cost"]
    assert (cost["tasks"], cost["missing"]) == (2, 2)
    assert cost["losses"] == 2 * 5 * 2
    assert cost["seconds"] > 0
    shares, answer = [], {"done": 0.0}
    while "report" not in answer:
        answer = landscape.landscape(store, [student.id], ["line", "curvature"], patience=0.0, **look)
        shares.append(answer["done"])
    assert len(shares) > 20
    assert shares == sorted(shares)
    monkeypatch.setattr(_measures, "line", lambda *_, **__: pytest.fail("it was measured again"))
    again = landscape.landscape(store, [student.id], ["line", "curvature"], start=False, **look)
    assert again["report"] == answer["report"]
    assert json.loads(json.dumps(again)) == again


def test_the_backend_s_report_is_the_library_s(taught: tuple[Store, Run, Run]) -> None:
    store, _, student = taught
    request = MeasureLandscape((student.id,), ("line", "curvature", "predictiveness"), "train", images=64, seed=3)
    price = handlers.landscape(store, replace(request, start=False))
    assert price.report is None
    assert price.cost is not None
    assert price.cost.missing == 3
    found = handlers.landscape(store, request)
    again = landscape.landscape(store, request.runs, request.measures, norms="train", images=64, seed=3)
    assert found.report is not None
    assert found.report.as_dict() == json.loads(json.dumps(again["report"]))
    assert found.report.runs[0].measures.plane is None


def test_what_was_kept_and_is_damaged_is_measured_again(taught: tuple[Store, Run, Run]) -> None:
    store, _, student = taught
    request: dict[str, Any] = {**QUICK, "seed": 12}
    first = landscape.landscape(store, [student.id], ["line"], **request)
    for file in (store.root / "cache" / "landscape").glob("*.json"):
        file.write_bytes(file.read_bytes().replace(b"loss", b"lose", 1))
    assert landscape.landscape(store, [student.id], ["line"], **request) == first


def test_ways_lead_between_runs_of_one_network(train: Train, store: Store) -> None:
    runs = [train(epochs=1, seed=seed) for seed in (0, 1)]
    report = landscape.landscape(store, [run.id for run in runs], ["path", "between"], **QUICK)["report"]
    for (way,) in (report["ways"], report["between"]):
        assert (way["run"], way["other"]) == (runs[0].id, runs[1].id)
    assert report["shared"]
    other = train(epochs=1, network={"kind": "cnn", "width": 4, "depth": 2})
    with pytest.raises(BadInput, match="no linear path between different networks"):
        landscape.landscape(store, [runs[0].id, other.id], ["path"])
    with pytest.raises(BadInput, match="need two runs"):
        landscape.landscape(store, [runs[0].id], ["path"])


# --- is it more rugged as the student shrinks? ------------------------------------------------------------------------


def runs_of(values: list[float], sizes: list[int]) -> list[dict[str, Any]]:
    """Runs whose rise is given; their maxima say nothing."""
    return [
        {"params": size, "loss": 1.0, "measures": {"line": {"rise": value, "maxima": 0.5}}}
        for value, size in zip(values, sizes, strict=True)
    ]


SIZES = [100, 100, 100, 400, 400, 400, 1600, 1600, 1600]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([9.0, 9.2, 8.8, 6.0, 6.1, 5.9, 3.0, 3.3, 2.7], "supports"),
        ([3.0, 3.2, 2.8, 6.0, 6.1, 5.9, 9.0, 9.3, 8.7], "opposite"),
        ([3.0, 9.0, 6.0, 9.0, 3.0, 5.0, 4.0, 8.0, 6.0], "no difference"),
    ],
)
def test_verdicts_are_of_the_interval(values: list[float], verdict: str) -> None:
    found = {trend["name"]: trend for trend in _sizes.trends(runs_of(values, SIZES))}
    trend = found["rise of the loss at 0.2 along filter-normalised directions"]
    x = np.log2(SIZES)
    slope = ((x - x.mean()) * (np.array(values) - np.mean(values))).sum() / ((x - x.mean()) ** 2).sum()
    rest = np.array(values) - np.mean(values) - slope * (x - x.mean())
    error = (rest @ rest / 7 / ((x - x.mean()) ** 2).sum()) ** 0.5
    low, high = slope - 2.3646 * error, slope + 2.3646 * error
    assert (trend["slope"], trend["low"], trend["high"]) == pytest.approx((slope, low, high), rel=1e-4, abs=1e-9)
    assert trend["verdict"] == verdict
    assert (low < 0 < high) == (verdict == "no difference")
    assert found["local maxima on a random line"]["verdict"] == "no difference"


def test_a_cosine_that_falls_with_size_says_the_opposite_and_holm_corrects() -> None:
    rng = np.random.default_rng(0)
    runs = runs_of([1.0] * 9, SIZES)
    for place, run in enumerate(runs):
        run["measures"]["predictiveness"] = {
            "strides": [{"cosine": 0.9 - 0.2 * (place // 3) + 0.01 * rng.normal(), "cosine_low": 0.1 * rng.normal(),
                         "change": -0.02 * (place // 3) + 0.03 * rng.normal()}]
        }  # fmt: skip
    found = {trend["name"].split(",")[0]: trend for trend in _sizes.trends(runs)}
    assert found["cosine of gradients before and after a 5% step"]["verdict"] == "opposite"
    change = found["change of the loss by that step"]
    raw = stats.linregress(np.log2(SIZES), [run["measures"]["predictiveness"]["strides"][0]["change"] for run in runs])
    assert change["p"] > raw.pvalue
    told = " ".join(_sizes.words(list(found.values()), runs, "train"))
    assert "contradict it" in told
    assert "end at different losses" in told
    assert told.count("[batch norm: train]") == len(found)


def test_few_runs_are_no_evidence() -> None:
    (trend, *_) = _sizes.trends(runs_of([1.0, 2.0, 3.0], [1, 2, 4]))
    assert (trend["verdict"], trend["slope"]) == ("too few runs", None)


def test_a_ladder_is_of_ordinary_specs() -> None:
    spec = tiny(seed=3)
    made = landscape.ladder(spec, [8, 4, 8], 2)
    assert [(one.network.width, one.seed) for one in made] == [(4, 3), (4, 4), (8, 3), (8, 4)]  # type: ignore[union-attr]
    assert made[0] == tiny(seed=3, network={"kind": "cnn", "width": 4, "depth": 2})
    for widths, seeds, words in (([4], 3, "2 to 12 different widths"), ([4, 8], 0, "1 to 20 seeds")):
        with pytest.raises(BadInput, match=words):
            landscape.ladder(spec, widths, seeds)
    with pytest.raises(BadInput, match="has a fixed size"):
        landscape.ladder(tiny(network="torchvision:resnet18"), [4, 8], 1)
    with pytest.raises(BadInput, match="fix the width"):
        landscape.ladder(tiny(start="0123456789abcdef"), [4, 8], 1)


@pytest.mark.slow
def test_the_command_line_compares_widths(train: Train, store: Store) -> None:
    run = train(epochs=2)
    done_ = command(
        "landscape",
        run.id,
        "--widths",
        "3,6,12",
        "--seeds",
        "2",
        "--images",
        "128",
        "--bn",
        "train",
        "--json",
        store=store,
    )
    assert done_.returncode == 0, done_.stderr
    report = json.loads(done_.stdout)
    assert len(report["runs"]) == 6
    assert run.id in {one["id"] for one in report["runs"]}  # it was one of them already
    assert {trend["runs"] for trend in report["sizes"]} == {6}
    assert len(report["sizes"]) == len(_sizes.READINGS)
    assert report["norms"] == "train"
    again = command("landscape", run.id, "--bn", "nonsense", store=store)
    assert again.returncode == 2
    assert "Choose eval, train, reestimate" in again.stderr


# --- refusals, steps --------------------------------------------------------------------------------------------------


def test_nonsense_is_refused_in_words(taught: tuple[Store, Run, Run], train: Train) -> None:
    store, _, student = taught
    for runs, measures, how, words in (
        ([], ["line"], {}, "takes 1 to 40 runs"),
        ([student.id], ["volume"], {}, "unknown measure"),
        ([student.id], [], {}, "unknown measure"),
        ([student.id], ["line"], {"images": 1}, "`images` must be between"),
        ([student.id], ["line"], {"points": 10}, "must be odd"),
        ([student.id], ["line"], {"norms": "test"}, "unknown batch-norm mode"),
    ):
        with pytest.raises(BadInput, match=f"(?i){words}"):
            landscape.landscape(store, runs, measures, **how)
    with pytest.raises(Refused, match="compares layers"):
        _surface.refuse(tiny(teacher="t", loss="fitnets"), "x")
    with pytest.raises(Refused, match="reshuffled"):
        _surface.refuse(tiny(teacher="t", shuffled=True), "x")


def test_looks_are_different_questions(taught: tuple[Store, Run, Run]) -> None:
    store, _, student = taught
    keys = {
        landscape.Landscape(store, [student.id], ["line"], look).tasks[0].key
        for look in (
            LandscapeSpec(),
            LandscapeSpec(norms="train"),
            LandscapeSpec(seed=1),
            LandscapeSpec(images=128),
            LandscapeSpec(directions=3),
        )
    }
    assert len(keys) == 5


def counting(call: Any) -> int:
    return sum(call(number) for number in (1, 2, 3))


def doubled(given: int) -> Generator[None, None, int]:
    yield
    yield
    return 2 * given


def test_a_library_that_calls_back_is_worked_with_in_steps() -> None:
    work = by_callback(counting, doubled)
    steps = [next(work) for _ in range(6)]
    with pytest.raises(StopIteration) as finished:
        next(work)
    assert finished.value.value == 12
    assert len(steps) == 6

    def breaks(call: Any) -> int:
        return call(1) / 0

    with pytest.raises(ZeroDivisionError):
        list(by_callback(breaks, doubled))
    before = threading.active_count()
    given_up = by_callback(counting, doubled)
    next(given_up)
    assert threading.active_count() == before + 1
    given_up.close()
    assert threading.active_count() == before


@pytest.mark.slow
def test_the_page_says_the_cost_then_shows_what_the_command_line_says(
    taught: tuple[Store, Run, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlit.testing.v1 import AppTest

    from pages.ui.app import context

    store, _, student = taught
    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))
    try:
        app = AppTest.from_file(str(ROOT / "pages" / "frame.py"), default_timeout=300).run()
        app.query_params["run"] = student.id
        app = app.switch_page("runs.py").run()
        app.toggle(key="landscape-open").set_value(True).run()
        app.selectbox(key="landscape-images").set_value(128).run()
        assert any("losses and" in str(one.value) for one in app.caption)
        app.button(key="landscape-start").click().run()
        assert not app.exception
        assert not app.error
        report = landscape.landscape(
            store, [student.id], ["line", "curvature", "predictiveness"], start=False, images=128
        )["report"]  # the backend measured and kept it
        table = next(one.value for one in app.dataframe if "Batch norm" in one.value.columns)
        assert table["Batch norm"].tolist() == ["eval"]
        (run,) = report["runs"]
        assert table["λ max"].tolist() == [run["measures"]["curvature"]["eigenvalues"][0]]
        assert table["Loss rise at 0.2"].tolist() == [run["measures"]["line"]["rise"]]
        assert any("eval (running statistics)" in str(one.value) for one in app.caption)
    finally:
        context.client().close()
