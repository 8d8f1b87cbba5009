"""A thousand hostile tries at every place where a file or a name of a user is read: each ends in words, and soon.

No traceback, no more than ten seconds of processor time, and no control character in what is printed.
`SMALLALIGN_TRIES` multiplies how many there are of each kind.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import command
from onnx import helper
from test_teachers import bomb, graph

from smallalign_core.errors import CONTROL
from smallalign_core.runs import class_names
from smallalign_core.runs.store import Store
from smallalign_core.system.sandbox import __main__ as inside, _checkpoint
from smallalign_core.system.sandbox._refusal import Refusal

SECONDS = 10.0  # of this process: a busy machine is not slow code
MORE = int(os.environ.get("SMALLALIGN_TRIES", "1"))

TYPED = """
~ true .inf -.inf .nan 1e400 -0 0x10 0o17 1_000 1:2:3 2001-99-99 2026-11-30T25:61:61 9999-12-31 "\\ud800" "\\0"
"\\x1b[31mred\\x1b[0m" "\\x9b2J" "\\u202egnp.exe" !x y *nothing &a [*a] {{}: {}} {? [a]: b} [[[[[[]]]]]]
!!int x|!!float y|!!bool maybe|!!null z|!!timestamp ~|!!binary "%"|!!set {a,b}|!!omap [a: b]|&b {c: *b}
!!python/object/apply:os.system [id]|!!python/name:os.system|../../etc/passwd|/proc/self/mem|/dev/zero|~nobody/x
file:///etc/passwd hf://x/y [x](http://example.com) <b>x</b> 😀 ＡＢ
"""
VALUES = [word for line in TYPED.split("\n") for word in line.split("|" if "|" in line else " ") if word]
KEYS = "data network kind width depth teacher loss optimizer inner lr seed epochs augment views batch start student"
FIELDS = KEYS.split()
HEADS = ["", "\ufeff", "%YAML 9.9\n---\n", "---\n---\n", "\t", "# \x1b]0;title\x07\n"]


def swelling(draw: random.Random) -> str:
    """Aliases of aliases."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * draw.randrange(1, 9))}]"
        for level in range(1, draw.randrange(3, 40))
    ]
    key = draw.choice([*FIELDS, "<<"])
    return "\n".join([*lines, f"{key}: *a{len(lines) - 1}"])


def text_of(draw: random.Random) -> bytes:
    """A YAML text that nobody means."""
    kind = draw.randrange(8)
    if kind == 0:
        return swelling(draw).encode()
    if kind == 1:
        number = "9" * draw.choice([90, 4299, 4301, 90_000])
        return f"{draw.choice(FIELDS)}: {draw.choice(['', '-', '0x'])}{number}".encode()
    if kind == 2:
        opening = draw.choice(["[", "{a: ", "- ", "? "])
        return (f"{draw.choice(FIELDS)}: " + opening * draw.choice([50, 3000])).encode()
    if kind == 3:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(200)))
    if kind == 4:
        return f"{draw.choice(FIELDS)}: &a {{kind: lookahead, inner: *a}}\noptimizer: &b [*b]".encode()
    encoding = draw.choice(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"])
    lines = [f"{draw.choice(FIELDS)}: {draw.choice(VALUES)}" for _ in range(draw.randrange(1, 6))]
    if draw.random() < 0.5:
        lines = ["data: digits", "network: {kind: cnn, width: 2}", *lines]
    if kind == 7:
        return json.dumps(dict(line.partition(": ")[::2] for line in lines)).encode()
    return (draw.choice(HEADS) + "\n".join(lines)).encode(encoding, errors="replace")


NAMES = ["", " ", "x" * 5000, "a/" * 2000, "\x1b[31m", "\x9b", "a\nb", "\u202e", "\udcff", "[x](http://example.com)"]
ODD = """
. .. / ~ ~nobody - -- /dev/zero /dev/stdin /proc/self/mem /proc/self/fd/0 /etc/passwd * ? [a 0000 ffffffffffffffff
http://example.com/x hf://a/b %00 digits-student/../digits-student 😀 PIPE LOOP LOCKED
"""
NAMES += ODD.split()


@contextlib.contextmanager
def soon(what: object) -> Iterator[None]:
    begin = time.process_time()
    yield
    assert time.process_time() - begin < SECONDS, what


def told(*given: object, store: Store) -> None:
    """One try at the command line."""
    with soon(given):
        done = command(*given, store=store)
    said = (done.stdout + done.stderr).replace("\r", "")
    assert done.returncode in (0, 1, 2), given
    assert "Traceback" not in said, given
    assert not CONTROL.search(said), (given, said[:400])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    os.mkfifo(folder / "PIPE")
    (folder / "LOOP").symlink_to(folder / "LOOP")
    (folder / "LOCKED").mkdir(mode=0)
    return folder


def _written(draw: random.Random, place: Path, ending: str) -> Path:
    if draw.random() < 0.1:
        return place / draw.choice(["PIPE", "LOOP", "LOCKED", "nothing"])
    file = place / f"x{ending}"
    file.write_bytes(text_of(draw))
    return file


def spec(draw: random.Random, place: Path, store: Store) -> None:
    told(draw.choice(["submit", "ablate", "train"]), _written(draw, place, ".yaml"), "--set", "epochs=-1", store=store)


def override(draw: random.Random, place: Path, store: Store) -> None:
    value = draw.choice([*VALUES, swelling(draw), "9" * 5000])
    told(
        "submit",
        "models/zoo/digits-student/spec.yaml",
        "--set",
        f"{draw.choice(FIELDS)}={value}",
        "--set",
        "epochs=-1",
        store=store,
    )


def study(draw: random.Random, place: Path, store: Store) -> None:
    told(draw.choice(["optimizers", "scale"]), _written(draw, place, ".yaml"), store=store)


def policy(draw: random.Random, place: Path, store: Store) -> None:
    told("preview", _written(draw, place, ".yaml"), "--data", "nowhere", "--to", place / "to", store=store)


def decisions(draw: random.Random, place: Path, store: Store) -> None:
    told("inspect", "digits", "--set", f"decisions={_written(draw, place, '.json')}", store=store)


def names(draw: random.Random, place: Path, store: Store) -> None:
    file = _written(draw, place, draw.choice(class_names.ENDINGS))
    told("import", place / "nothing.onnx", "--data", "nowhere", "--classes", file, store=store)


def reference(draw: random.Random, place: Path, store: Store) -> None:
    name = draw.choice(NAMES)
    if name in ("PIPE", "LOOP", "LOCKED"):
        name = str(place / name)
    verb = draw.choice(
        [["runs", "show"], ["evaluate"], ["preflight"], ["runs", "cancel"], ["runs", "delete"], ["inspect"], ["verify"]]
    )
    told(*verb, *(["--"] if name.startswith("-") else []), name, store=store)


def damaged(draw: random.Random, place: Path, store: Store) -> None:
    """A store in which somebody wrote what they liked."""
    root = place / "store"
    shutil.rmtree(root, ignore_errors=True)
    run = root / "runs" / f"{draw.getrandbits(64):016x}"
    run.mkdir(parents=True)
    for name in ("spec.json", "state.json", "result.json", "events.jsonl", "import.json", "checkpoints.json", "queued"):
        if draw.random() < 0.6:
            (run / name).write_bytes(text_of(draw))
    if draw.random() < 0.3:
        (root / "test-looks.jsonl").write_bytes(text_of(draw))
    if draw.random() < 0.2:
        (run / "log.txt").symlink_to(run / "log.txt")
    told(
        "runs",
        *draw.choice([["list"], ["show", run.name], ["resume", run.name], ["delete", run.name]]),
        store=Store(root),
    )


def model(draw: random.Random, place: Path, store: Store) -> None:
    """As the process in the jail reads it, without its limits, which would be this process's."""
    file = place / "m.bin"
    file.write_bytes(_spoiled(draw))
    with pytest.MonkeyPatch.context() as patch, soon(file), contextlib.suppress(Refusal):
        for name in ("limit_memory", "lift_memory"):
            patch.setattr(inside._seccomp, name, lambda *_, **__: None)
        verb = draw.choice(["inspect", "convert"])
        inside.answer(
            {
                "verb": verb,
                "file": str(file),
                "to": str(place / "w"),
                "which": None,
                "size": [8, 8],
                "limits": {"memory": 2**32},
            }
        )


def _spoiled(draw: random.Random) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(3)}, "best": np.float64(1)}, stream)
    bodies = [
        graph(),
        bomb([helper.make_node("Relu", ["x"], ["y"])]),
        stream.getvalue(),
        pickle.dumps({"w": [1]}),
        b"PK\3\4",
    ]
    content = bytearray(draw.choice(bodies))
    for _ in range(draw.randrange(4)):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content[: draw.randrange(len(content)) if draw.random() < 0.3 else None])


KINDS: dict[Callable[[random.Random, Path, Store], None], int] = {
    spec: 200, override: 100, study: 150, policy: 150, decisions: 60, names: 100, reference: 120, damaged: 150,
    model: 120,
}  # fmt: skip
assert sum(KINDS.values()) >= 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_hostile_tries(kind: Callable[[random.Random, Path, Store], None], place: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    for seed in range(KINDS[kind] * MORE):
        kind(random.Random(f"{kind.__name__} {seed}"), place, store)


def test_functions_that_call_functions_are_counted_before_they_are_loaded() -> None:
    """Forty lines stand for 2**40 nodes."""
    functions, opset = [], [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    for level in range(40):
        inner = f"f{level - 1}" if level else "Relu"
        domain = "f" if level else ""
        nodes = [
            helper.make_node(inner, ["x"], ["a"], domain=domain),
            helper.make_node(inner, ["a"], ["y"], domain=domain),
        ]
        functions.append(helper.make_function("f", f"f{level}", ["x"], ["y"], nodes, opset))
    x, y = (helper.make_tensor_value_info(name, 1, ["n", 3, 8, 8]) for name in "xy")
    made = helper.make_graph([helper.make_node("f39", ["x"], ["y"], domain="f")], "bomb", [x], [y])
    content = helper.make_model(made, functions=functions, opset_imports=opset, ir_version=10)
    bodies = {(one.domain, one.name): list(one.node) for one in content.functions}
    with soon("counting"), pytest.raises(Refusal) as caught:
        inside._refuse_expanded(list(content.graph.node), bodies)
    assert "with functions inlined" in caught.value.parts[0]
    assert _checkpoint.harmless()
