"""Datasets of the Hugging Face hub: addresses, Parquet with images, and a small hub on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image

from smallalign_core import data
from smallalign_core.data import Splits, _hub
from smallalign_core.errors import BadData, Refused
from smallalign_core.spec import parse_data
from smallalign_core.system import limits

DRAW = np.random.default_rng(0)
NAMES = ("zebra", "ant", "cow")


def png() -> bytes:
    content = io.BytesIO()
    Image.fromarray(DRAW.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def parquet(
    file: Path,
    count: int,
    *,
    names: tuple[str, ...] = NAMES,
    told: bool = True,
    called: str | None = "{}.png",
    **more: Any,
) -> Path:
    """A Parquet file as `datasets` writes it: images as bytes and path, labels as numbers with names in the schema."""
    file.parent.mkdir(parents=True, exist_ok=True)
    paths = [None if called is None else called.format(f"{file.stem[:5]}{row}") for row in range(count)]
    table = pa.table(
        {
            "image": pa.array([{"bytes": png(), "path": path} for path in paths]),
            "label": pa.array([row % len(names) for row in range(count)]),
        }
        | more
    )
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(names)}}
    if told:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file, row_group_size=10)
    return file


def load(source: Path | str, cache: Path, **fields: object) -> Splits:
    return data.load(parse_data({"source": str(source), **fields}), cache)


def labels(splits: Splits) -> dict[str, str]:
    parts = (splits.train, splits.val, splits.test)
    return {str(part.path(row)): part.classes[part.labels[row]] for part in parts for row in range(len(part))}


# --- folders of Parquet files -----------------------------------------------------------------------------------------


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    root = tmp_path / "set"
    parquet(root / "data" / "train-00000-of-00002.parquet", 30)
    parquet(root / "data" / "train-00001-of-00002.parquet", 15, called="more{}.png")
    parquet(root / "data" / "test-00000-of-00001.parquet", 9)
    splits = load(root, tmp_path / "cache")
    assert splits.classes == NAMES, "the order of the labels is that of the dataset"
    assert (splits.reader, splits.columns) == ("parquet", {"path": "image", "label": "label"})
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (45, 9)
    assert labels(splits)["train4.png"] == "ant"
    assert labels(splits)["moretrain5.png"] == "cow"
    one = pq.read_table(root / "data" / "test-00000-of-00001.parquet").to_pylist()[3]["image"]["bytes"]
    (row,) = [row for row in range(9) if splits.test.path(row) == "test-3.png"]
    assert (splits.test.images[row].transpose(1, 2, 0) == np.asarray(Image.open(io.BytesIO(one)))).all()


def test_images_without_names_are_known_by_their_rows(tmp_path: Path) -> None:
    parquet(tmp_path / "set" / "train.parquet", 30, called=None)
    assert labels(load(tmp_path / "set", tmp_path / "cache"))["train.parquet/7"] == "ant"
    parquet(tmp_path / "set" / "train.parquet", 30, called="same.png")
    assert labels(load(tmp_path / "set", tmp_path / "cache"))["train.parquet/7/same.png"] == "ant"


def arrow(file: Path, count: int, *, indexed: bool = False, **fields: Any) -> Path:
    """The same as `parquet` writes, as `Dataset.save_to_disk` writes it: a stream of record batches."""
    table = pq.read_table(parquet(file.with_suffix(".parquet"), count, **fields))
    file.with_suffix(".parquet").unlink()
    opened = pa.ipc.new_file if indexed else pa.ipc.new_stream
    with opened(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return file


def test_a_dataset_saved_to_disk(tmp_path: Path) -> None:
    """The layout of `DatasetDict.save_to_disk`: a folder a split, its shards, and JSON beside them."""
    root = tmp_path / "set"
    arrow(root / "train" / "data-00000-of-00002.arrow", 30, called="a{}.png")
    arrow(root / "train" / "data-00001-of-00002.arrow", 15, called="b{}.png")
    arrow(root / "test" / "data-00000-of-00001.arrow", 9, called="c{}.png")
    (root / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (root / "train" / "state.json").write_text("{}")
    splits = load(root, tmp_path / "cache")
    assert (splits.reader, splits.columns) == ("parquet", {"path": "image", "label": "label"})
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (45, 9)
    assert splits.classes == NAMES
    rows = {path: name for path, name in labels(splits).items() if path.startswith("a")}
    assert rows == {f"adata-{row}.png": NAMES[row % 3] for row in range(30)}
    assert "from 3 Arrow files: images from column image" in " ".join(splits.notes)

    one = pa.ipc.open_stream(root / "test" / "data-00000-of-00001.arrow").read_all().to_pylist()[3]["image"]
    at = [str(splits.test.path(row)) for row in range(9)].index(one["path"])
    assert np.array_equal(splits.test.images[at].transpose(1, 2, 0), Image.open(io.BytesIO(one["bytes"])))


@pytest.mark.parametrize("listed", [False, True], ids=["by name", "by state.json"])
def test_cached_results_of_map_are_no_data(listed: bool, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part, count in (("train", 30), ("test", 9)):
        arrow(root / part / "data-00000-of-00001.arrow", count)
        arrow(root / part / ("other.arrow" if listed else "cache-0a1b.arrow"), 12, called="copy{}.png")
        if listed:
            state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
            (root / part / "state.json").write_text(json.dumps(state))
    splits = load(root, tmp_path / "cache")
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (30, 9)
    assert "2 cached results of `datasets` were left out" in " ".join(splits.notes)


@pytest.mark.parametrize("indexed", [False, True], ids=["stream", "feather"])
def test_one_arrow_file_is_a_source(indexed: bool, tmp_path: Path) -> None:
    splits = load(arrow(tmp_path / "data-00000-of-00001.arrow", 30, indexed=indexed), tmp_path / "cache")
    same = load(parquet(tmp_path / "x.parquet", 30), tmp_path / "cache")
    assert (splits.classes, len(splits.train)) == (same.classes, len(same.train))


@pytest.mark.parametrize(
    "content", [b"ARROW1\0\0 and nothing more", b"", os.urandom(2000)], ids=["head", "empty", "noise"]
)
def test_a_damaged_arrow_file_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.arrow").write_bytes(content)
    with pytest.raises(BadData, match="Arrow file cannot be read"):
        load(tmp_path / "x.arrow", tmp_path / "cache")


def test_a_cut_arrow_file_is_refused_in_words(tmp_path: Path) -> None:
    file = arrow(tmp_path / "x.arrow", 30)
    file.write_bytes(file.read_bytes()[:-700])
    with pytest.raises(BadData, match="Arrow file cannot be read"):
        load(file, tmp_path / "cache")


def test_one_parquet_file_is_a_source(tmp_path: Path) -> None:
    file = parquet(tmp_path / "x.parquet", 30)
    assert load(file, tmp_path / "cache").classes == NAMES
    before = load(file, tmp_path / "cache").fingerprint
    parquet(file, 33)
    assert load(file, tmp_path / "cache").fingerprint != before


def test_names_of_classes_from_the_readme(tmp_path: Path) -> None:
    parquet(tmp_path / "set" / "data" / "train-00000-of-00001.parquet", 30, told=False)
    assert load(tmp_path / "set", tmp_path / "cache").classes == ("0", "1", "2")
    (tmp_path / "set" / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n"
        "      class_label:\n        names:\n          '0': zebra\n          '1': ant\n          '2': cow\n---\n"
    )
    assert load(tmp_path / "set", tmp_path / "cache").classes == NAMES


def test_configurations_of_a_readme(tmp_path: Path) -> None:
    root = tmp_path / "set"
    parquet(root / "a" / "one.parquet", 30)
    parquet(root / "a" / "two.parquet", 9)
    parquet(root / "b" / "one.parquet", 12, names=("x", "y"))
    configs = (
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: b/*.parquet}\n"
        "- config_name: large\n{default}  data_files:\n  - {split: train, path: a/one*}\n"
        "  - {split: test, path: a/two*}\n---\n"
    )
    (root / "README.md").write_text(configs.replace("{default}", "  default: true\n"))
    splits = load(root, tmp_path / "cache")
    assert (splits.classes, len(splits.test)) == (NAMES, 9)
    (root / "README.md").write_text(configs.replace("{default}", ""))
    with pytest.raises(BadData, match=r"(?i)several configurations.*small, large"):
        load(root, tmp_path / "cache")


def test_rows_without_a_label_or_an_image_are_counted(tmp_path: Path) -> None:
    file = parquet(tmp_path / "x.parquet", 30)
    rows = pq.read_table(file).to_pylist()
    rows[3]["label"], rows[4]["label"], rows[5]["image"] = -1, None, None
    table = pa.Table.from_pylist(rows, schema=pq.read_schema(file))
    pq.write_table(table, file)
    splits = load(file, tmp_path / "cache")
    assert len(labels(splits)) == 27
    assert "2 rows without a label were left out" in " ".join(splits.notes)
    assert "1 rows without an image were left out" in " ".join(splits.notes)


def test_columns_of_labels(tmp_path: Path) -> None:
    fine = {"coat": pa.array([("red", "blue")[row % 2] for row in range(30)])}
    file = parquet(tmp_path / "x.parquet", 30, **fine)
    assert load(file, tmp_path / "cache").classes == NAMES
    assert load(file, tmp_path / "cache", columns={"label": "coat"}).classes == ("blue", "red")
    file = parquet(tmp_path / "y.parquet", 30, label=pa.array([[row % 2, 1] for row in range(30)]), told=False)
    with pytest.raises(BadData, match="several labels in one cell"):
        load(file, tmp_path / "cache")


@pytest.mark.parametrize("content", [b"PAR1 and nothing more", b"", os.urandom(2000)], ids=["head", "empty", "noise"])
def test_a_damaged_parquet_file_is_refused_in_words(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(BadData, match="Parquet file cannot be read"):
        load(tmp_path / "x.parquet", tmp_path / "cache")


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf://owner/name", ("owner/name", None, None)),
        ("hf://owner/na-me.x@v1.0", ("owner/na-me.x", "v1.0", None)),
        ("hf://owner/name/config", ("owner/name", None, "config")),
        ("hf://owner/name@0123abc/plain text/", ("owner/name", "0123abc", "plain text")),
        ("hf://owner/name@refs/convert/parquet/config", ("owner/name", "refs/convert/parquet", "config")),
        ("hf://datasets/owner/name", ("owner/name", None, None)),
    ],
)
def test_addresses(source: str, parts: tuple[str | None, ...]) -> None:
    found = _hub.parsed(source)
    assert (found.repo, found.revision, found.config) == parts


@pytest.mark.parametrize("source", ["hf://", "hf://name", "hf://a/../b", "hf://a/b/c/d/e", "hf://a/b@x@y", "hf://a b"])
def test_what_is_no_address_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match="address of a Hugging Face dataset cannot be read"):
        load(source, tmp_path / "cache")


def test_users_of_a_restricted_dashboard_download_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.ROOTS, str(tmp_path))
    limits.require_allowed()
    try:
        with pytest.raises(Refused, match="for the owner of this machine only"):
            load("hf://owner/name", tmp_path / "cache")
    finally:
        monkeypatch.delenv(limits.ROOTS)
        limits.require_allowed()


# --- a hub ------------------------------------------------------------------------------------------------------------


class Hub:
    """Datasets in a folder, served as huggingface.co serves them; `asked` are the paths that were requested."""

    def __init__(self, root: Path) -> None:
        self.root, self.requested = root, list[str]()
        hub = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_POST(self) -> None:
                hub.take(self)

            def do_PUT(self) -> None:
                hub.take(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def commit(self, repo: str) -> str:
        files = sorted((self.root / repo).rglob("*.*"))
        return hashlib.sha1(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.partition("?")[0]
        self.requested.append(path)
        api = re.fullmatch(r"/api/datasets/([\w-]+/[\w-]+)(?:/(revision|tree)/([\w%.-]+))?", path)
        file = re.fullmatch(r"/datasets/([\w-]+/[\w-]+)/resolve/([\w.-]+)/(.+)", path)
        found = api or file
        if found is None or not (self.root / found[1]).is_dir():
            return self.reply(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        commit, folder = self.commit(found[1]), self.root / found[1]
        if found[3 if api else 2] not in (None, "main", commit):
            return self.reply(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if file is not None:
            content = (folder / file[3]).read_bytes()
            tag = hashlib.sha1(content).hexdigest()
            return self.reply(request, 200, content, {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}, body)
        files = [one for one in sorted(folder.rglob("*")) if one.is_file()]
        named = [(one.relative_to(folder).as_posix(), one.stat().st_size) for one in files]
        if api is not None and api[2] == "tree":
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in named]
            return self.reply(request, 200, json.dumps(tree).encode(), {}, body)
        told = {"id": found[1], "sha": commit, "siblings": [{"rfilename": name, "size": size} for name, size in named]}
        return self.reply(request, 200, json.dumps(told).encode(), {}, body)

    def take(self, request: BaseHTTPRequestHandler) -> None:
        """Answer an upload."""
        self.reply(request, 403, b"{}", {}, True)

    @staticmethod
    def reply(request: BaseHTTPRequestHandler, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        request.send_response(code)
        for name, value in (
            {"Content-Length": str(len(content)), "Content-Type": "application/json"} | headers
        ).items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    made = Hub(tmp_path / "hub")
    yield made
    made.server.shutdown()
    made.server.server_close()


def inspect(source: str, home: Path, address: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`inspect` in a process of its own: the hub's client reads its settings when it is imported."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "smallalign_core", "inspect", source, "--json", "--store", str(home / "store"), *more],
        env=given | {"HF_ENDPOINT": address, "HF_HOME": str(home / "hf"), **environment},
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def nowhere() -> str:
    """The address of a host that refuses to answer."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_fetched_once_and_then_needs_no_host(hub: Hub, tmp_path: Path) -> None:
    parquet(hub.root / "owner" / "pets" / "data" / "train-00000-of-00001.parquet", 30)
    parquet(hub.root / "owner" / "pets" / "data" / "validation-00000-of-00001.parquet", 9)
    (hub.root / "owner" / "pets" / "weights.bin").write_bytes(bytes(1000))
    done = inspect("hf://owner/pets", tmp_path, hub.address)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["reader"], found["classes"], sum(found["counts"]["val"].values())) == ("parquet", list(NAMES), 9)
    assert hub.commit("owner/pets")[:12] in " ".join(found["notes"])
    assert not any("weights.bin" in path for path in hub.requested), "only what is needed"
    hub.requested.clear()
    again = json.loads(inspect("hf://owner/pets", tmp_path, hub.address).stdout)
    assert (again["fingerprint"], hub.requested) == (found["fingerprint"], []), "decoded images need no host"
    size = ("--set", "size=6")  # another size is decoded anew, from the hub's own cache
    for environment in ({"HF_HUB_OFFLINE": "1"}, {}):
        offline = inspect("hf://owner/pets", tmp_path, nowhere(), *size, **environment)
        assert offline.returncode == 0, offline.stderr
        assert json.loads(offline.stdout)["images"] == 39
        size = ("--set", "size=7")
    revision = inspect(f"hf://owner/pets@{hub.commit('owner/pets')}", tmp_path, hub.address)
    assert json.loads(revision.stdout)["fingerprint"] == found["fingerprint"]


@pytest.mark.slow
def test_a_folder_of_images_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    """The layout `imagefolder`: with class folders, or with metadata.jsonl."""
    for number in range(24):
        for file in (f"folders/train/{NAMES[number % 3]}/{number}.png", f"listed/train/{number}.png"):
            (hub.root / "owner" / file).parent.mkdir(parents=True, exist_ok=True)
            (hub.root / "owner" / file).write_bytes(png())
    lines = [json.dumps({"file_name": f"{number}.png", "kind": NAMES[number % 3]}) for number in range(24)]
    (hub.root / "owner" / "listed" / "train" / "metadata.jsonl").write_text("\n".join(lines))
    for name in ("folders", "listed"):
        done = inspect(f"hf://owner/{name}", tmp_path, hub.address)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["classes"] == sorted(NAMES)


@pytest.mark.slow
def test_what_the_hub_does_not_have_is_said_in_words(hub: Hub, tmp_path: Path) -> None:
    (hub.root / "owner" / "texts").mkdir(parents=True)
    (hub.root / "owner" / "texts" / "x.txt").write_text("no image")
    for source, address, words in (
        ("hf://owner/none", hub.address, "no such dataset on the hub"),
        ("hf://owner/texts@other", hub.address, "no such revision"),
        ("hf://owner/texts", hub.address, "neither Parquet files nor images"),
        ("hf://owner/far", nowhere(), "cannot be fetched: it is not in the cache"),
    ):
        done = inspect(source, tmp_path, address)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_host_is_asked_for_any_other_source(hub: Hub, tmp_path: Path) -> None:
    parquet(tmp_path / "set" / "train.parquet", 30)
    for source in ("digits", str(tmp_path / "set")):
        assert inspect(source, tmp_path, hub.address).returncode == 0
    assert hub.requested == []
