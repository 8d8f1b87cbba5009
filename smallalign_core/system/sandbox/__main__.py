"""The sandboxed process: limits itself, opens one model file and replies with facts. Started by the parent package
only.

Limits come first, libraries second, the file last. File names are not trusted: kinds are detected by content.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import runpy
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from smallalign_core.system.sandbox import _checkpoint, _seccomp
from smallalign_core.system.sandbox._refusal import Refusal

GIANT = 1024**3  # max. bytes of one constant
MOST_NODES = 20_000
MOST_METADATA = 1_000_000
ENDLESS = {"Loop", "Scan"}  # termination on one input says nothing about others
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}


# --- what kind of file ------------------------------------------------------------------------------------------------


def kind_of(file: Path) -> str:
    """One of onnx (unverified), safetensors, pickle; programs are rejected by name."""
    with file.open("rb") as stream:
        head = stream.read(16)
    if head[:2] == b"PK":
        try:
            names = [name.partition("/")[2] for name in zipfile.ZipFile(file).namelist()]
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):  # undecodable names, unknown versions
            raise Refusal("the file is a damaged zip") from None
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            _refuse_program("TorchScript")
        if any(name.endswith((".json", ".pt2")) or name == "archive_format" for name in names):
            _refuse_program("an exported program (.pt2)")
        if "data.pkl" in names:
            return "pickle"
        raise Refusal("the file is a zip without a model", ", ".join(names[:3]))
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        return "pickle"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size:
        return "safetensors"
    return "onnx"


def _refuse_program(what: str) -> None:
    raise Refusal(
        f"the file is {what}, a program, which is not executed here",
        do="export the model as ONNX, or save its state_dict",
    )


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_facts(file: Path, size: list[int], memory: int) -> dict[str, Any]:
    """Parse, reject constructs that a classifier does not need, then run once."""
    import numpy as np
    import onnx
    import onnxruntime  # noqa: F401  # before memory is limited

    _seccomp.limit_memory(memory)
    content = file.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception:  # noqa: BLE001  # protobuf's errors differ by back end
        model = onnx.ModelProto()
    if not model.graph.node or not model.opset_import:
        raise Refusal("the file is neither ONNX nor safetensors", do="export the model as one .onnx file")
    nodes = list(_nodes(model.graph))
    bodies = {
        (function.domain, function.name): [inner for node in function.node for inner in _with_inner(node)]
        for function in model.functions
    }
    _refuse_expanded(nodes, bodies)
    for body in bodies.values():
        nodes += body
    _refuse_nodes(nodes, DOMAINS | {function.domain for function in model.functions})
    tensors = list(_tensors(model.graph, nodes))
    for tensor in tensors:
        _refuse_tensor(tensor)
    _refuse_giants(model.graph, nodes)
    try:
        session = _opened(content, threads=1)
        facts = _doors(session)
        shape = [dim if isinstance(dim, int) else None for dim in facts["input"]["shape"]]
        example = np.zeros(_trial_shape(shape, size), facts["input"]["dtype"])
        answers = session.run(None, {facts["input"]["name"]: example})
    except Refusal:
        raise
    except Exception as error:  # noqa: BLE001  # onnxruntime's exceptions share no base class
        raise _words(error) from None
    facts["trial"] = [list(np.shape(found)) for found in answers]
    kept = {entry.key: entry.value for entry in model.metadata_props}
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "ir": int(model.ir_version),
        "opset": max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        "producer": model.producer_name[:80],
        "nodes": len(nodes),
        "params": sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        "metadata": kept if sum(map(len, kept.values())) < MOST_METADATA else {},
        **facts,
    }


def _onnx_opener() -> Callable[[bytes, int], Any]:
    import onnxruntime  # noqa: F401  # before memory is limited

    return _opened


def _opened(content: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    options.add_session_config_entry(
        "session.load_model_format", "ONNX"
    )  # only the format that was inspected, not ORT's own
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield from _with_inner(node)


def _with_inner(node: Any) -> Iterator[Any]:
    yield node
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            yield from _nodes(inner)


def _tensors(graph: Any, nodes: Iterable[Any]) -> Iterator[Any]:
    """Every tensor in the file: initializers of all graphs, and constants in attributes."""
    yield from _stored(graph)
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _stored(inner)


def _stored(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def _refuse_nodes(nodes: list[Any], domains: set[str]) -> None:
    if len(nodes) > MOST_NODES:
        raise Refusal(f"the model has more than {MOST_NODES:,} nodes", f"{len(nodes):,}", "give a simpler model")
    for node in nodes:
        if node.domain not in domains:
            raise Refusal(
                "the model needs an operator that ONNX does not define",
                f"{node.domain}.{node.op_type}",
                "export it with standard operators",
            )
        if node.op_type in ENDLESS:
            raise Refusal(
                "the model has a loop with unbounded run time",
                node.op_type,
                "export it with loops unrolled",
            )


def _refuse_expanded(nodes: list[Any], bodies: dict[tuple[str, str], list[Any]]) -> None:
    """Functions that call functions: a few of them can expand to billions of nodes when ONNX Runtime inlines them."""
    known: dict[tuple[str, str], int] = {}

    def expanded(inner: list[Any]) -> int:
        total = 0
        for node in inner:
            name = (node.domain, node.op_type)
            if name in bodies:
                if known.get(name) == 0:
                    raise Refusal("the model has a recursive function", node.op_type, "export it without")
                if name not in known:
                    known[name] = 0
                    known[name] = 1 + expanded(bodies[name])
            total += known.get(name, 1)
        return total

    try:
        count = expanded(nodes)
    except RecursionError:
        raise Refusal("the model has functions nested too deeply", do="export it without functions") from None
    if count > MOST_NODES:
        most = f"{MOST_NODES:,} nodes, with functions inlined"
        raise Refusal(f"the model has more than {most}", f"{count:.3g}", "export it without functions")


def _refuse_tensor(tensor: Any) -> None:
    if tensor.data_location == 1 or tensor.external_data:
        raise Refusal(
            "the model stores its weights in another file",
            tensor.name,
            "save it as one file: torch.onnx.export(..., external_data=False)",
        )
    count = math.prod(tensor.dims)
    if not 0 <= count * 4 <= GIANT:
        raise Refusal("the model declares a giant constant", f"{count:,} numbers", "give a smaller model")


def _refuse_giants(graph: Any, nodes: list[Any]) -> None:
    """Large constants from a few bytes: ConstantOfShape with a fixed shape."""
    from onnx import numpy_helper

    fixed = {tensor.name: tensor for tensor in graph.initializer}
    for node in nodes:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                fixed[node.output[0]] = attribute.t
    for node in nodes:
        if node.op_type == "ConstantOfShape" and node.input[0] in fixed:
            count = math.prod(int(side) for side in numpy_helper.to_array(fixed[node.input[0]]).ravel())
            if not 0 <= count * 4 <= GIANT:
                raise Refusal("the model declares a giant constant", f"{count:,} numbers", "give a smaller model")


def _doors(session: Any) -> dict[str, Any]:
    """The one input and the outputs; a model that is not an image classifier is rejected."""
    inputs = [{"name": door.name, "type": door.type, "shape": door.shape} for door in session.get_inputs()]
    outputs = [{"name": door.name, "type": door.type, "shape": door.shape} for door in session.get_outputs()]
    door = inputs[0] if len(inputs) == 1 else {"type": "", "shape": []}
    if len(door["shape"]) != 4 or door["type"] not in TYPES:
        found = ", ".join(f"{one['name']} {one['type']}{one['shape']}" for one in inputs)
        raise Refusal(
            "an image classifier must have one 4-dimensional input of type uint8 or float",
            found,
            "export the classifier alone",
        )
    return {"input": door | {"dtype": TYPES[door["type"]]}, "outputs": outputs}


def _trial_shape(shape: list[int | None], size: list[int]) -> list[int]:
    """The shape of the trial input: two images if the batch is free; channels first if the layout is free."""
    batch, *rest = shape
    last = rest[2] in (1, 3) and rest[0] not in (1, 3)
    wanted = [*size, 3] if last else [3, *size]
    filled = [known if known is not None else trial for known, trial in zip(rest, wanted, strict=True)]
    if math.prod(filled) > 3 * 4096**2 or (batch or 0) > 4096:
        raise Refusal(
            "the model's input images are too large", f"{shape}", "give a model for images of up to 4096 pixels"
        )
    return [2 if batch is None else batch, *filled]


def _words(error: Exception) -> Refusal:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocat" in text.lower():
        return Refusal("the model needs more memory than allowed", text[-120:], "give a smaller model")
    if "dimension" in text.lower() or "shape" in text.lower():
        return Refusal("the model does not accept images of this size", text[-160:], "give the input size with --size")
    return Refusal("the runtime cannot run the model", text[:160], "export it again")


# --- tensors ----------------------------------------------------------------------------------------------------------


def safetensors_facts(file: Path, memory: int) -> dict[str, Any]:
    """Facts from the header."""
    from safetensors import SafetensorError, safe_open

    _seccomp.limit_memory(memory)
    try:
        with safe_open(file, framework="numpy") as opened:
            shapes = {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Refusal("the safetensors file is damaged", error) from None
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "sha256": digest,
        "tensors": len(shapes),
        "params": sum(math.prod(shape) for shape in shapes.values()),
    }


# --- requests ---------------------------------------------------------------------------------------------------------


def answer(call: dict[str, Any]) -> dict[str, Any]:
    """Facts, or a `Refusal`."""
    file, memory = Path(call["file"]), call["limits"]["memory"]
    if call["verb"] == "convert":
        _seccomp.limit_memory(memory, for_good=False)  # a zip may list millions of files
        kind = kind_of(file)
        _seccomp.lift_memory()
        if kind != "pickle":
            raise Refusal("the file is not a PyTorch checkpoint", do="only .pt and .pth files need converting")
        import torch  # noqa: F401  # before memory is limited

        _seccomp.limit_memory(memory)
        return _checkpoint.convert(file, Path(call["to"]), call["which"])
    _seccomp.limit_memory(memory, for_good=False)  # a zip may list millions of files
    kind = kind_of(file)
    _seccomp.lift_memory()
    if kind == "pickle":
        raise Refusal(
            "the file is a pickle, which can run code when it is read",
            do="write its tensors as safetensors: python -m smallalign_core convert FILE --to FILE.safetensors",
        )
    found = safetensors_facts(file, memory) if kind == "safetensors" else onnx_facts(file, call["size"], memory)
    return {"kind": kind, "bytes": file.stat().st_size, **found}


def serve(call: dict[str, Any], out: BinaryIO) -> None:
    """Run an accepted file, which is sent first, on arrays until the input ends.

    The engine is ONNX Runtime, or a file with `opener()`, which loads a runtime and returns a function like `_opened`.
    Libraries may write temporary files while they load, the model file may not.

    Each array is sent as a line of JSON (type, shape) followed by its bytes; an error is such a line alone.
    """
    import numpy as np

    opened = _onnx_opener() if call["engine"] is None else runpy.run_path(call["engine"])["opener"]()
    _seccomp.limit(None, 0)
    _seccomp.limit_memory(call["limits"]["memory"])
    content = sys.stdin.buffer.read(call["bytes"])
    _seccomp.limit_next(call["limits"]["seconds"])
    try:
        session = opened(content, call["threads"])
        _send(out, {"facts": {}})
    except Exception as error:  # noqa: BLE001  # onnxruntime's exceptions share no base class
        _send(out, {"refused": _words(error).parts})
        return
    while line := sys.stdin.buffer.readline():
        door = json.loads(line)
        given = np.frombuffer(sys.stdin.buffer.read(door["bytes"]), door["dtype"]).reshape(door["shape"])
        _seccomp.limit_next(call["limits"]["seconds"])
        try:
            (found,) = session.run([door["output"]], {door["input"]: given})
            found = np.ascontiguousarray(found, np.float32)
            times = _timed(lambda: session.run([door["output"]], {door["input"]: given}), door["seconds"])  # noqa: B023
        except Exception as error:  # noqa: BLE001
            _send(out, {"refused": _words(error).parts})
            continue
        _send(out, {"shape": found.shape, "ms": [float(np.percentile(times, share)) for share in (50, 95)]})
        out.write(found.data)
        out.flush()


def _timed(work: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each repetition of `work`, after a warm-up of the same duration; [0] for no duration."""
    times = [0.0]
    for _ in range(2 if seconds else 0):
        times, until = [], time.perf_counter() + seconds
        while time.perf_counter() < until or len(times) < 5:
            start = time.perf_counter()
            work()
            times.append((time.perf_counter() - start) * 1000)
    return times


def _send(out: BinaryIO, reply: dict[str, Any]) -> None:
    out.write(json.dumps(reply).encode() + b"\n")
    out.flush()


def attempts(port: int) -> dict[str, bool]:
    """What is still possible despite the restrictions, tested from inside."""
    import socket

    def connects() -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True

    def starts() -> bool:
        os.execv(f"/nothing-{os.getpid()}", ["nothing"])
        return True

    def possible(attempt: Any) -> bool:
        try:
            return bool(attempt())
        except FileNotFoundError:  # the lookup was allowed
            return True
        except OSError:
            return False

    return {"network": possible(connects), "programs": possible(starts)}


def main() -> None:
    """Reply to the request in the first argument with one line of JSON."""
    call = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # library output must not mix with the reply
    serves = call["verb"] == "serve"
    _seccomp.limit(None if serves else call["limits"]["seconds"], call.get("written", 0))
    walls = {"namespace": _seccomp.leave_network(), "seccomp": _seccomp.refuse_calls()}
    if serves:
        serve(call, out)
        os._exit(0)
    if call["verb"] == "attempts":
        _send(out, {"facts": walls | attempts(call["port"])})
        os._exit(0)
    try:
        reply: dict[str, Any] = {"facts": answer(call)}
    except Refusal as refusal:
        reply = {"refused": refusal.parts}
    except MemoryError:
        reply = {"refused": ["the model file needs more memory than allowed", "", "give a smaller model"]}
    except Exception as error:  # noqa: BLE001  # a parser may fail in any way; the caller gets a sentence
        reply = {"refused": ["the model file cannot be read", repr(error)[:160], "export it again"]}
    _send(out, reply)
    os._exit(0)  # library cleanup under a memory limit may hang or crash


if __name__ == "__main__":
    main()
