"""Fuzz: whatever stands in a file or is typed as a name, only errors of the tree come out. About 10,200 cases."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings, strategies as st
from onnx import helper
from test_teachers import bomb, graph

from smallalign_core.cli._main import main
from smallalign_core.data import _readers
from smallalign_core.errors import SmallAlignError
from smallalign_core.runs import policies
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec import DataSpec, RunSpec, canonical, digest, parse, parse_data, parse_policy, read, to_yaml
from smallalign_core.system import files, sandbox
from smallalign_core.system.sandbox import __main__ as inside

COUNT = {"spec": 3000, "set": 1500, "idx": 1500, "zip": 300, "name": 1500, "model": 1400, "journal": 1000}
assert sum(COUNT.values()) >= 10_000


def cases(kind: str, share: float = 1.0) -> Any:
    """The same cases every time: a failure in CI is one here."""
    return settings(
        max_examples=int(COUNT[kind] * share),
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def only_ours() -> Iterator[None]:
    """Anything but the error tree's own errors fails the test; those have words."""
    told = None
    try:
        yield
    except SmallAlignError as error:
        told = error
    assert told is None or (told.wrong and "\n" not in str(told))


TYPED = """
data network kind width depth teacher loss optimizer inner lr seed epochs augment digits cnn kd adamw sam shift
lookahead resnet temperature weight views batch ~ null true 1e400 .inf -0 0x10 2026-11-23
<<: *a &a !!int !!timestamp 2001-99-99 !!python/name:os {} [] : - ' " # | > % @
"""
WORDS = st.sampled_from([*TYPED.split(), "9" * 5000, "&a [*a, *a]", "\x1b[31m"])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=8), inner, max_size=5),
    max_leaves=12,
)
GOOD = {
    "data": "digits",
    "network": {"kind": "cnn", "width": 6},
    "teacher": "digits-teacher",
    "loss": {"kind": "kd", "temperature": 4},
    "augment": [{"kind": "shift", "pixels": 1}],
    "optimizer": {"kind": "lookahead", "inner": {"kind": "adamw", "lr": 0.01}},
}


# --- specs ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(text=st.lists(WORDS | st.sampled_from(["\n", "  ", ": ", ", ", "\t"]) | st.text(max_size=5), max_size=30))
@cases("spec", 1 / 3)
def test_spec_files(tmp_path_factory: pytest.TempPathFactory, text: list[str]) -> None:
    file = _place(tmp_path_factory) / "spec.yaml"
    file.write_text("".join(text), encoding="utf-8", errors="surrogatepass")
    with only_ours():
        read(file)


@pytest.mark.slow
@given(content=st.binary(max_size=60))
@cases("spec", 1 / 6)
def test_spec_files_of_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = _place(tmp_path_factory) / "spec.yaml"
    file.write_bytes(content)
    with only_ours():
        read(file)


@pytest.mark.slow
@given(changes=st.dictionaries(st.sampled_from(sorted(RunSpec.model_fields)), PLAIN, min_size=1, max_size=3))
@cases("spec", 1 / 3)
def test_specs_of_any_values(changes: dict[str, Any]) -> None:
    with only_ours():
        spec = parse({**GOOD, **changes})
        assert digest(parse(json.loads(json.dumps(spec.model_dump(mode="json"))))) == digest(spec)
        assert canonical(spec)
        to_yaml(spec)


@pytest.mark.slow
@given(written=PLAIN)
@cases("spec", 1 / 6)
def test_policies_and_data_of_any_values(written: Any) -> None:
    with only_ours():
        parse_policy(written)
    with only_ours():
        parse_data(written)


@pytest.mark.slow
@given(
    path=st.lists(WORDS | st.text(max_size=6) | st.integers(-2, 20).map(str), max_size=5),
    value=st.text(max_size=12) | WORDS,
    between=st.sampled_from(["=", "", "==", " = "]),
)
@cases("set")
def test_overrides(tmp_path_factory: pytest.TempPathFactory, path: list[str], value: str, between: str) -> None:
    file = _place(tmp_path_factory) / "good.json"
    if not file.exists():
        file.write_text(json.dumps(GOOD))
    with only_ours():
        read(file, [f"{'.'.join(path)}{between}{value}"])


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    head=st.binary(max_size=4) | st.just(b"\0\0\x08\x03") | st.just(b"\0\0\x08\x01"),
    sides=st.lists(st.integers(0, 4) | st.integers(0, 2**32 - 1), max_size=4),
    body=st.binary(max_size=80),
    packed=st.booleans(),
)
@cases("idx")
def test_idx_files(
    tmp_path_factory: pytest.TempPathFactory, head: bytes, sides: list[int], body: bytes, packed: bool
) -> None:
    folder = _place(tmp_path_factory)
    content = head + b"".join(side.to_bytes(4, "big") for side in sides) + body
    file = folder / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    file.write_bytes(content)
    with only_ours():
        _readers._idx(file)
    (folder / "train-images-idx3-ubyte.gz").unlink(missing_ok=True)
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    (folder / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x02" + body[:2])
    with only_ours():
        spec = DataSpec(source=str(folder))
        _readers.reader(spec)(spec, folder)


NAMES = st.sampled_from(
    ["a/1.png", "b/2.png", "../x.png", "/x.png", "a\\b.png", "C:/x.png", "a/.png", "a" * 300, "a/\0.png"]
)


@pytest.mark.slow
@given(
    names=st.lists(NAMES | st.text(min_size=1, max_size=20).map(lambda text: f"{text}.png"), max_size=4),
    content=st.binary(max_size=30),
    spoil=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
)
@cases("zip")
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zips(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], content: bytes, spoil: list[tuple[int, int]]
) -> None:
    folder, made = _place(tmp_path_factory), io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            with contextlib.suppress(UnicodeEncodeError, IndexError):  # zipfile cannot write every name
                archive.writestr(name, content)
    packed = bytearray(made.getvalue())
    for place, value in spoil:
        packed[place % len(packed)] = value
    (folder / "x.zip").write_bytes(packed)
    before = {path.name for path in folder.parent.iterdir()}
    with only_ours():
        spec = DataSpec(source=str(folder / "x.zip"))
        _readers.reader(spec)(spec, folder)
    shutil.rmtree(folder / "unzipped", ignore_errors=True)  # as whoever gave the folder does
    assert {path.name for path in folder.parent.iterdir()} == before, "nothing was written outside"


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(name=st.text(max_size=60) | st.text("abcdef0123456789./~-\0 ", max_size=20) | WORDS | st.just("a" * 5000))
@cases("name")
def test_names(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    store = Store(_place(tmp_path_factory) / "models")
    with only_ours():
        store.run(name)
    with only_ours():
        assert store.claim_zoo_name(name).resolve().parent == (store.root / "zoo").resolve()
    with only_ours():
        policies.load(store, name)
    with only_ours():
        _readers.reader(DataSpec.model_construct(source=name))


# --- model files ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    head=st.dictionaries(
        st.text(max_size=6),
        PLAIN
        | st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "I64", "X"]), "shape": PLAIN, "data_offsets": PLAIN}),
        max_size=3,
    ),
    length=st.none() | st.integers(0, 2**64 - 1),
    body=st.binary(max_size=40),
)
@cases("model", 0.5)
def test_safetensors(
    tmp_path_factory: pytest.TempPathFactory, head: dict[str, Any], length: int | None, body: bytes
) -> None:
    file, text = _place(tmp_path_factory) / "w.safetensors", json.dumps(head).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    _looked_at(file)


RELU = helper.make_node("Relu", ["x"], ["y"])
SOUND = (bomb([RELU]), graph())


@pytest.mark.slow
@given(
    sound=st.sampled_from(SOUND),
    spoil=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 10**6),
    more=st.binary(max_size=20),
)
@cases("model", 0.5)
def test_onnx(
    tmp_path_factory: pytest.TempPathFactory, sound: bytes, spoil: list[tuple[int, int]], cut: int, more: bytes
) -> None:
    content = bytearray(sound)
    for place, value in spoil:
        content[place % len(content)] = value
    file = _place(tmp_path_factory) / "m.onnx"
    file.write_bytes(bytes(content[: len(content) - cut % len(content)] if cut % 3 == 0 else content) + more)
    _looked_at(file)


def _looked_at(file: Path) -> None:
    """As the jail's process does, without its limits (they would be this process's) and without the trial run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inside._seccomp, "limit_memory", lambda *_, **__: None)
        patch.setattr(inside._seccomp, "lift_memory", lambda: None)

        def opened(*_: Any, **__: Any) -> Any:
            raise inside.Refusal("it is not tried here")

        patch.setattr(inside, "_opened", opened)
        with contextlib.suppress(inside.Refusal):
            inside.answer({"verb": "inspect", "file": str(file), "size": [8, 8], "limits": {"memory": 2**32}})


@given(spoil=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=12, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@pytest.mark.slow
def test_onnx_in_the_jail(tmp_path_factory: pytest.TempPathFactory, spoil: list[tuple[int, int]]) -> None:
    content = bytearray(SOUND[1])
    for place, value in spoil:
        content[place % len(content)] = value
    file = _place(tmp_path_factory) / "m.onnx"
    file.write_bytes(bytes(content))
    with only_ours():
        sandbox.inspect(file, (8, 8))


# --- the store's own files --------------------------------------------------------------------------------------------


LINE = (
    st.binary(max_size=40).filter(lambda line: b"\n" not in line)
    | PLAIN.map(lambda value: json.dumps(value).encode())
    | st.fixed_dictionaries({"kind": st.sampled_from(["resumed", "epoch", "started"]), "step": PLAIN}).map(
        lambda value: json.dumps(value).encode()
    )
)


@pytest.mark.slow
@given(lines=st.lists(LINE, max_size=6))
@cases("journal", 0.5)
def test_journals(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    run = Run(_place(tmp_path_factory))
    (run.folder / "events.jsonl").write_bytes(b"\n".join(lines))
    with only_ours():
        assert all("kind" in event for event in run.events())
    with only_ours():
        files.append(run.folder / "events.jsonl", {"kind": "progress", "step": 10**9})
        assert run.events()[-1]["step"] == 10**9


@pytest.mark.slow
@given(content=st.binary(max_size=40) | PLAIN.map(lambda value: json.dumps(value).encode()), name=st.integers(0, 3))
@cases("journal", 0.5)
def test_state_files(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: int) -> None:
    folder = _place(tmp_path_factory)
    for kept in folder.glob("*.json"):
        kept.unlink()
    file = folder / ("spec.json", "state.json", "import.json", "result.json")[name]
    file.write_bytes(content)
    for look in (
        lambda: Run(folder).state,
        lambda: Run(folder).spec,
        lambda: Run(folder).title,
        lambda: Run(folder).id,
    ):
        with only_ours():
            look()


_PLACES: dict[int, Path] = {}


def _place(factory: pytest.TempPathFactory) -> Path:
    """A folder for all cases: making one each would be most of the time."""
    if id(factory) not in _PLACES:
        _PLACES[id(factory)] = factory.mktemp("fuzz") / "in"
        _PLACES[id(factory)].mkdir()
    return _PLACES[id(factory)]


@pytest.mark.parametrize(
    "words",
    [
        ["landscape", "digits-student", "--widths", "4,²"],
        ["verify", "x.onnx", "--size", "²x²"],
        ["train", str(ROOT / "models/zoo/digits-student/spec.yaml"), "--set", "augment.².pixels=1"],
    ],
)
def test_what_only_looks_like_a_digit_is_refused(
    words: list[str], store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--store", str(store.root)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
