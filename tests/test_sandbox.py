"""The sandbox's limits hold from the first byte, and the file that was checked is the one that runs."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from smallalign_core.errors import BadModel
from smallalign_core.system import sandbox


def test_a_file_is_run_as_what_it_was_looked_at(tmp_path: Path) -> None:
    """ONNX Runtime takes bytes with ORTM at their fifth place for its own format, of which the jail sees no node."""
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 1, 8, 8])
    said = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 64])
    graph = helper.make_graph([helper.make_node("Flatten", ["images"], ["logits"])], "g", [image], [said])
    model = helper.make_model(graph, producer_name="ORTM", opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    file = tmp_path / "both.onnx"
    file.write_bytes(model.SerializeToString())
    assert file.read_bytes()[4:8] == b"ORTM"
    assert sandbox.inspect(file, (8, 8))["trial"] == [[2, 64]]


@pytest.mark.slow
def test_a_zip_of_millions_of_names_meets_the_memory_limit(tmp_path: Path) -> None:
    """Telling kinds apart reads the whole list of a zip: that is bounded too."""
    count = 300_000
    entry = struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    names = b"".join(entry + b"a/%06d" % number for number in range(count))
    end = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, len(names), 4)
    end += struct.pack("<IIQI", 0x07064B50, 0, 4 + len(names), 1)
    end += struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    file = tmp_path / "many.pt"
    file.write_bytes(b"PK\x03\x04" + names + end)
    for look in (sandbox.inspect, sandbox.convert):
        with pytest.raises(BadModel, match="zip without a model"):
            look(file)  # type: ignore[operator]
        with pytest.raises(BadModel, match="more memory"):
            look(file, limits=sandbox.Limits(memory=64 * 1024**2))  # type: ignore[operator]


def test_a_folder_is_no_model_file(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="not a regular file"):
        sandbox.inspect(tmp_path)
