"""int8 with an accuracy limit: calibration, sensitivities, the sequence of tests, and what is said and written."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Train
from onnxruntime import GraphOptimizationLevel as Level
from scipy import optimize, stats

from smallalign_core import data, export
from smallalign_core.cli import main
from smallalign_core.data import Splits
from smallalign_core.errors import BadInput, WorkFailed
from smallalign_core.export import _file, _quantized
from smallalign_core.metrics import score_interval
from smallalign_core.networks import quantize
from smallalign_core.runs.export_report import Drop
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec.precision import FileOptions, file_name, parse_variant, plain_name, variant_of

# --- the interval -----------------------------------------------------------------------------------------------------


def score_statistic(lost: int, gained: int, total: int, difference: float) -> float:
    """Tango's statistic, its nuisance parameter found by maximising the trinomial likelihood numerically."""

    def unlikely(share: float) -> float:
        cells = ((lost, share + difference), (gained, share), (total - lost - gained, 1 - 2 * share - difference))
        return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

    least, most = max(0.0, -difference), (1 - difference) / 2
    share = optimize.minimize_scalar(unlikely, bounds=(least, most), method="bounded", options={"xatol": 1e-13}).x
    return float((lost - gained - total * difference) / math.sqrt(total * (2 * share + difference * (1 - difference))))


@pytest.mark.parametrize(
    ("lost", "gained", "total"), [(9, 3, 150), (0, 4, 80), (12, 0, 300), (40, 38, 1000), (1, 0, 60)]
)
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_the_interval_inverts_the_score_test(lost: int, gained: int, total: int, level: float) -> None:
    low, high = score_interval(lost, gained, total, level)
    z = stats.norm.ppf((1 + level) / 2)
    assert low < (lost - gained) / total < high
    assert score_statistic(lost, gained, total, high) == pytest.approx(-z, abs=2e-3)
    assert score_statistic(lost, gained, total, low) == pytest.approx(z, abs=2e-3)


def test_the_interval_without_any_difference_is_the_wilson_interval_of_none() -> None:
    square = stats.norm.ppf(0.975) ** 2
    assert score_interval(0, 0, 500) == pytest.approx((-square / (500 + square), square / (500 + square)), abs=1e-8)
    assert score_interval(0, 0, 0) == (-1.0, 1.0)
    assert score_interval(3, 0, 3)[1] == 1.0
    assert score_interval(0, 3, 3)[0] == -1.0


@pytest.mark.parametrize("gained", [0.0, 0.005, 0.03])
def test_a_loss_at_the_limit_is_seldom_accepted(gained: float) -> None:
    """The exact probability, over all outcomes, that a file which loses 2% is said to lose less: about 2.5%."""
    total, limit = 250, 0.02
    accepted = 0.0
    for lost in range(45):
        for other in range(35):
            if score_interval(lost, other, total)[1] < limit:
                accepted += stats.multinomial.pmf(
                    [lost, other, total - lost - other], total, [limit + gained, gained, 1 - limit - 2 * gained]
                )
    assert 0.001 < accepted < 0.035


# --- calibration ------------------------------------------------------------------------------------------------------


def histogram(values: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    edges = np.linspace(values.min(), values.max(), quantize.BINS + 1)
    return edges, np.histogram(values, edges)[0]


def error_of(values: np.ndarray[Any, Any], low: float, high: float) -> float:
    """Mean squared error of 8-bit values in this range, from the definition."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    stored = np.clip(np.round(values / scale) + zero, 0, 255)
    return float((((stored - zero) * scale - values) ** 2).mean())


@pytest.mark.parametrize("one_sided", [False, True])
def test_calibrations_clip_outliers_as_defined(one_sided: bool) -> None:
    values = np.random.default_rng(0).standard_t(3, 200_000)
    values = np.abs(values) if one_sided else values
    edges, counts = histogram(values)
    width = edges[1] - edges[0]
    low, high = quantize.percentile(edges, counts)
    wanted = np.quantile(values, [quantize.CUT / 2, 1 - quantize.CUT / 2])
    assert high == pytest.approx(wanted[1], abs=1.01 * width)
    assert low == pytest.approx(values.min() if one_sided else wanted[0], abs=1.01 * width)

    best = quantize.least_error(edges, counts)
    grid = [
        error_of(values, float(a), float(b))
        for a in ([0.0] if one_sided else quantize.CLIPPED * values.min())
        for b in quantize.CLIPPED * values.max()
    ]
    assert error_of(values, *best) == pytest.approx(min(grid), rel=0.02)
    assert error_of(values, *best) < 0.9 * error_of(values, values.min(), values.max())


def test_a_range_without_outliers_is_kept() -> None:
    edges, counts = histogram(np.random.default_rng(0).uniform(-1, 3, 100_000))
    assert quantize.least_error(edges, counts) == pytest.approx((edges[0], edges[-1]))
    assert quantize.percentile(edges, counts) == pytest.approx((edges[0], edges[-1]), abs=0.002)


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Run, Splits]:
    store = Store(tmp_path_factory.mktemp("quantized"))
    run = Store(Path("models")).run("digits-student")
    return store, run, data.load(run.data, store.data_cache)


def graph_of(student: tuple[Store, Run, Splits]) -> bytes:
    store, run, _ = student
    return _file.graph_of_run(run, store, _file.metadata_of(run))


def quantizer_of(student: tuple[Store, Run, Splits]) -> tuple[quantize.Quantizer, np.ndarray[Any, Any], Any]:
    about = _file.metadata_of(student[1])
    made, pixels = _file.quantizer_of(graph_of(student), student[2].train, about)
    return made, pixels, lambda one: _file.finished(one, about)


@pytest.mark.slow
def test_layers_left_in_float_are_computed_in_float_with_weights_in_8_bits(
    student: tuple[Store, Run, Splits],
) -> None:
    made, pixels, finish = quantizer_of(student)
    products = [node for node in made._model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert [layer.nodes[0] for layer in made.layers] == [node.name for node in products]
    assert len(made.layers) >= 4

    graph = onnx.load_model_from_string(made.write(floats=[1]))
    held = {tensor.name: tensor for tensor in graph.graph.initializer}
    source = {output: node for node in graph.graph.node for output in node.output}
    kinds = []
    for node in (node for node in graph.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")):
        weights = source[node.input[1]]
        inner = weights if weights.op_type == "DequantizeLinear" else source[weights.input[0]]
        assert held[inner.input[0]].data_type == onnx.TensorProto.INT8, "every weight is stored in 8 bits"
        kinds.append(weights.op_type)
    assert kinds == ["Mul" if at == 1 else "DequantizeLinear" for at in range(len(kinds))]
    none = onnx.load_model_from_string(made.write(floats=range(len(made.layers)))).graph
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in none.node}

    wanted = export.OnnxClassifier(finish(graph_of(student))).logits(pixels)
    errors = []
    for floats in ((), [1], range(len(made.layers))):
        found = export.OnnxClassifier(finish(_quantized.fixed_width(made.write(floats=floats)))).logits(pixels)
        errors.append(float(((found - wanted) ** 2).mean()))
    assert 0 < errors[2] < errors[0]


@pytest.mark.slow
def test_min_max_is_what_the_library_writes(student: tuple[Store, Run, Splits], tmp_path: Path) -> None:
    """Byte for byte ONNX Runtime's `quantize_static`: runs whose teachers answer in 8 bits depend on it."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made, _, _ = quantizer_of(student)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = iter(made._batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"images": batch}

    whole, prepared, out = (tmp_path / name for name in ("whole.onnx", "prepared.onnx", "out.onnx"))
    whole.write_bytes(graph_of(student))
    quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=QuantFormat.QDQ,
        nodes_to_exclude=quantize._around(onnx.load(prepared).graph),
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
    )
    assert out.read_bytes() == made.write("minmax")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-student", "digits-teacher"])
def test_integers_are_the_same_on_every_processor(name: str, tmp_path: Path) -> None:
    """What the graph means, computed in floats without any fused kernel, is what the fast integer kernels compute.

    Where a processor lacks VNNI, ONNX Runtime adds two products of 8 bits in 16 bits: with weights up to 127 the sum
    saturates at 32,767, which cost the zoo's models 2.5 points of accuracy there, and nothing elsewhere.
    """
    store = Store(tmp_path / "models")
    run = store.run(name)
    export.bundle(run, store, precision="int8")
    content = (export.bundle_folder(run, store) / export.file_name("model.onnx", "int8")).read_bytes()
    stored = [
        one for one in onnx.load_model_from_string(content).graph.initializer if one.data_type == onnx.TensorProto.INT8
    ]
    weights = [onnx.numpy_helper.to_array(one).astype(np.int64) for one in stored if len(one.dims) > 1]
    assert len(weights) >= 4
    assert all(np.abs(one).max() == 64 for one in weights)
    assert 2 * 255 * 64 < 2**15

    images = export.nhwc(data.load(run.spec.data, store.data_cache).test)
    found = []
    for level in (Level.ORT_DISABLE_ALL, Level.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found.append(session.run(["logits"], {session.get_inputs()[0].name: images})[0])
    meant, computed = found
    assert (meant.argmax(1) == computed.argmax(1)).mean() > 0.997  # a value between two integers may round either way
    assert np.abs(meant - computed).max() < 0.02 * meant.std()


@pytest.mark.slow
def test_sensitivities_are_those_of_one_layer_alone(student: tuple[Store, Run, Splits]) -> None:
    made, pixels, finish = quantizer_of(student)
    found = _quantized.sensitivities(made, "minmax", finish, pixels[:64])
    everything = set(range(len(made.layers)))

    def probabilities(floats: set[int]) -> np.ndarray[Any, Any]:
        logits = export.OnnxClassifier(finish(made.write(floats=floats))).logits(pixels[:64]).astype(np.float64)
        raised = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(raised / raised.sum(1, keepdims=True))

    reference = probabilities(everything)
    for at, cost in enumerate(found):
        assert cost == pytest.approx(
            stats.entropy(reference, probabilities(everything - {at}), axis=1).mean(), rel=1e-3, abs=1e-9
        )
    assert min(found) > 0


# --- the sequence -----------------------------------------------------------------------------------------------------

CLASSES = 2
IMAGES = 4000


class Pretended:
    """A quantizer whose files get as many images wrong as their layers in integers cost."""

    def __init__(self, costs: list[float], wrong: list[int]) -> None:
        self.costs, self.wrong = costs, wrong
        self.layers = tuple(quantize.Layer(f"layer{at}", (f"node{at}",), 10) for at in range(len(costs)))
        self.written: list[frozenset[int]] = []

    def write(self, calibration: str = "minmax", *, floats: Any = ()) -> bytes:
        left = frozenset(floats)
        self.written.append(left)
        return json.dumps([calibration, sorted(left)]).encode()


def tried(
    pretended: Pretended, how: FileOptions, monkeypatch: pytest.MonkeyPatch, images: int = IMAGES
) -> _quantized.Made:
    labels = np.zeros(images, np.int64)
    reference = np.tile(np.array([[1.0, 0.0]], np.float32), (images, 1))

    class Classifier:
        def __init__(self, content: bytes) -> None:
            calibration, left = json.loads(content)
            self.integers = [at for at in range(len(pretended.layers)) if at not in left]
            self.extra = {"minmax": 3, "percentile": 2, "mse": 1}[calibration] if len(self.integers) > 1 else 0

        def logits_of(self, _: Any) -> np.ndarray[Any, Any]:
            found = reference.copy()
            wrong = sum(pretended.wrong[at] for at in self.integers) + self.extra
            found[:wrong] = found[:wrong, ::-1]
            return found

        def logits(self, pixels: Any) -> np.ndarray[Any, Any]:
            shift = sum(pretended.costs[at] for at in self.integers)
            return np.tile(np.array([[1.0 + shift, 0.0]], np.float32), (len(pixels), 1))

    monkeypatch.setattr(_quantized, "OnnxClassifier", Classifier)
    monkeypatch.setattr(_quantized, "fixed_width", lambda graph: graph)
    val: Any = type("Part", (), {"labels": labels, "__len__": lambda _: images})()
    pixels = np.zeros((300, 2, 2, 1), np.uint8)
    return _quantized.quantized(pretended, how, lambda one: one, pixels, val, reference)  # type: ignore[arg-type]


def test_the_calibration_with_the_best_agreement_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tried(Pretended([1, 2], [1, 1]), FileOptions(), monkeypatch)
    assert made.how.calibration == "mse"
    assert made.how.agreement == {
        "minmax": pytest.approx(1 - 5 / IMAGES),
        "percentile": pytest.approx(1 - 4 / IMAGES),
        "mse": pytest.approx(1 - 3 / IMAGES),
    }
    fixed = tried(Pretended([1, 2], [1, 1]), FileOptions("minmax"), monkeypatch)
    assert fixed.how.agreement == {"minmax": pytest.approx(1 - 5 / IMAGES)}


def test_a_plain_file_within_the_limit_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = tried(Pretended([3, 1, 2], [1, 0, 0]), FileOptions("mse", 0.5), monkeypatch)
    assert json.loads(made.graph) == ["mse", []]
    assert made.how.in_float == ()
    assert made.how.drop == made.how.plain
    assert made.how.paid == 0
    assert made.how.drop is not None
    assert (made.how.drop.lost, made.how.drop.level) == (2, 1 - 0.05 / 2)


def test_the_most_sensitive_layers_are_left_in_float_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended([0.5, 0.01, 0.3, 0.02], [200, 1, 100, 2])
    made = tried(pretended, FileOptions(None, 0.5), monkeypatch)
    assert made.how.in_float == ("layer0", "layer2")
    assert json.loads(made.graph)[1] == [0, 2]
    assert made.how.drop is not None
    assert made.how.plain is not None
    assert made.how.drop.high <= 0.005 < made.how.plain.high
    assert made.how.drop.level == pytest.approx(1 - 0.05 / 6), "three calibrations, two sequences"
    # The order is fixed beforehand, and the sequence ends with the first file that misses the limit.
    looked = [left for left in pretended.written if left][-4:]
    assert looked == [{0, 1, 2, 3}, {0, 2, 3}, {0, 2}, {0}]


def test_a_later_file_within_the_limit_is_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended([0.01, 0.02, 0.03, 0.5], [0, 90, -90, 500])
    assert tried(pretended, FileOptions("mse", 0.5), monkeypatch).how.in_float == ("layer1", "layer2", "layer3")


@pytest.mark.parametrize(
    ("always", "error", "words"),
    [(500, "even with all layers computed in float", "fp16"), (14, "Not shown", "validation images would decide it")],
)
def test_a_limit_that_is_not_met_is_an_error(
    always: int, error: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_of = _quantized.drop_of

    def worse(reference: Any, found: Any, labels: Any, level: float) -> Drop:
        found = found.copy()
        found[-always:] = found[-always:, ::-1]
        return drop_of(reference, found, labels, level)

    monkeypatch.setattr(_quantized, "drop_of", worse)
    with pytest.raises(WorkFailed, match=error) as caught:
        tried(Pretended([1.0], [200]), FileOptions("mse", 0.5), monkeypatch)
    assert words in str(caught.value)


def test_the_number_of_images_that_would_do_does() -> None:
    for limit, level in ((0.005, 0.975), (0.02, 1 - 0.05 / 6)):
        needed = _quantized.images_without_difference(limit, level)
        assert score_interval(0, 0, needed, level)[1] <= limit < score_interval(0, 0, needed - 1, level)[1]
    drop = _quantized.Drop(1000, 8, 5, 0.003, *score_interval(8, 5, 1000, 0.95), 0.95)
    needed = _quantized.images_needed(drop, 0.005)
    assert needed is not None
    assert score_interval(round(0.008 * needed), round(0.005 * needed), needed)[1] == pytest.approx(0.005, abs=1e-4)
    assert _quantized.images_needed(drop, 0.003) is None


def test_too_few_images_are_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pretended = Pretended([1.0], [0])
    with pytest.raises(BadInput, match="143 validation images cannot show") as caught:
        tried(pretended, FileOptions(None, 0.5), monkeypatch, images=143)
    assert "1,386 validation images (1,000 with --calibration)" in str(caught.value)
    assert not pretended.written


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (FileOptions(), "int8"),
        (FileOptions("mse"), "int8-mse"),
        (FileOptions(None, 0.5), "int8-drop0.5"),
        (FileOptions("minmax", 10.0), "int8-drop10-minmax"),
        (FileOptions(None, 0.001), "int8-drop0.001"),
    ],
)
def test_a_kind_of_file_has_one_name(how: FileOptions, name: str) -> None:
    assert variant_of("int8", how) == name
    assert parse_variant(name) == ("int8", how)
    assert plain_name(file_name("parity.json", name)) == ("parity.json", name)


@pytest.mark.parametrize("name", ["int4", "int8-", "int8-drop", "int8-drop0.50", "int8-drop99", "fp16-mse", "", "../x"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput):
        parse_variant(name)


def test_names_of_plain_files_stay() -> None:
    for file in ("model.onnx", "images.bin", "model-x.onnx", "model-fp32.onnx"):
        assert plain_name(file) == (file, "fp32")


# --- from end to end --------------------------------------------------------------------------------------------------

NETWORKS = [
    {"kind": "cnn", "width": 6, "depth": 2},
    {"kind": "separable", "width": 8, "depth": 2},
    {"kind": "resnet", "width": 4, "depth": 1},
]


def check(file: Path, run: Run, store: Store, written: dict[str, Any], limit: float) -> None:
    """The file itself, run on the validation images, keeps what its report says."""
    told, part = written["quantized"], data.load(run.data, store.data_cache).val
    model = export.OnnxClassifier(file.read_bytes())
    right = model.logits(export.nhwc(part)).argmax(1) == part.labels
    was = _file.reference_on("val", run, data.load(run.data, store.data_cache), store).argmax(1) == part.labels
    assert told["drop"]["lost"] == int((was & ~right).sum())
    assert told["drop"]["gained"] == int((right & ~was).sum())
    assert told["drop"]["high"] <= limit
    assert model.metadata["layers_in_float"] == [one["name"] for one in told["layers"] if one["in_float"]]
    assert model.metadata["max_drop"] == told["max_drop"]
    assert written["bytes"] == file.stat().st_size
    assert (told["paid"] == 0) == (not model.metadata["layers_in_float"])


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: one["kind"])
def test_own_networks_meet_a_limit(network: dict[str, Any], store: Store, train: Train, tmp_path: Path) -> None:
    run = train(network=network, epochs=12)
    file = tmp_path / "x.onnx"
    written = export.export(run, file, store, precision="int8", options=FileOptions(None, 6.0))
    check(file, run, store, written, 0.06)
    assert len(written["quantized"]["layers"]) >= 3
    assert export.verify(file, store)["ok"]


@pytest.mark.slow
def test_the_command_line_keeps_a_limit_or_writes_nothing(
    student: tuple[Store, Run, Splits], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run, _ = student
    file, zipped = tmp_path / "s.onnx", tmp_path / "s.zip"
    file.write_bytes(b"before")

    def say(*words: object) -> tuple[int, str, str]:
        code = main(["export", "digits-student", *map(str, words), "--store", str(store.root)])
        told = capsys.readouterr()
        return code, told.out, told.err

    code, _, err = say("--to", file, "--precision", "int8", "--max-drop", 0.5)
    assert code == 2
    assert "143 validation images cannot show that at most 0.5 points" in err
    assert "1,386" in err
    for wrong in (["fp16", "--max-drop", 1], ["int8", "--max-drop", 0], ["int8", "--max-drop", "nan"]):
        code, out, err = say("--to", file, "--precision", *wrong)
        assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    assert file.read_bytes() == b"before"

    code, out, err = say("--to", file, "--precision", "int8", "--max-drop", 6, "--json")
    assert code == 0, err
    check(file, run, store, json.loads(out), 0.06)
    code, out, err = say("--to", zipped, "--precision", "int8", "--max-drop", 6)
    assert code == 0, err
    assert "limit 6 points met" in out
    with zipfile.ZipFile(zipped) as archive:
        assert archive.read("model.onnx") == file.read_bytes()
        card = archive.read("card.md").decode()
        report = json.loads(archive.read("parity.json"))
    assert report["variant"] == "int8-drop6"
    assert all(f"| `{layer['name']}` |" in card for layer in report["quantized"]["layers"])
    assert (store.root / "exports" / run.id / "model-int8-drop6.onnx").is_file()
