"""Uploads to a hub on this machine: what arrives, what transformers.js would read, and every refusal in words."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from conftest import ROOT, command
from test_hub import Hub, nowhere

from smallalign_core import data, export
from smallalign_core.errors import Refused
from smallalign_core.export import _push
from smallalign_core.runs.store import Run, Store

Taught = tuple[Store, Run, Run]
TOKEN = "hf_test"


class ModelHub(Hub):
    """Takes model repositories as huggingface.co does: create, preupload, LFS in one part, commit."""

    def __init__(self, root: Path) -> None:
        self.large: dict[str, bytes] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        super().__init__(root)

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.partition("?")[0]
        repo = path.removeprefix("/api/models/")
        if repo in self.private:
            self.reply(request, 200, json.dumps({"id": repo, "private": self.private[repo]}).encode(), {}, body)
        else:
            super().answer(request, body=body)

    def take(self, request: BaseHTTPRequestHandler) -> None:
        content = request.rfile.read(int(request.headers["Content-Length"] or 0))
        path = request.path.partition("?")[0]
        if path.startswith("/large/"):
            self.large[path.rpartition("/")[2]] = content
            return self.reply(request, 200, b"{}", {}, True)
        if request.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.reply(request, 401, b'{"error": "Invalid credentials"}', {}, True)
        self.requested.append(path)
        if path.endswith(("/preupload/main", "/commit/main")):
            repo = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")[0]
            if repo not in self.private:
                return self.reply(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"}, True)
            given = content.decode()
            found = self.modes(given) if "preupload" in path else self.committed(repo, given)
        elif path == "/api/repos/create":
            asked = json.loads(content)
            repo = f"{asked['organization']}/{asked['name']}"
            if repo in self.private:
                return self.reply(request, 409, b'{"error": "You already created this model repo"}', {}, True)
            self.private[repo] = asked.get("visibility") == "private" or asked.get("private") is True
            found = {"url": f"{self.address}/{repo}"}
        elif path == "/api/validate-yaml":
            front = re.match(r"---\n(.*?)\n---\n", json.loads(content)["content"], re.DOTALL)
            assert front, "a README without metadata"
            assert "model-index" in yaml.safe_load(front[1])
            found = {"errors": [], "warnings": []}
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(content)["objects"]
            upload = [one | {"actions": {"upload": {"href": f"{self.address}/large/{one['oid']}"}}} for one in objects]
            found = {"transfer": "basic", "objects": upload}
        else:
            return self.reply(request, 404, b"{}", {}, True)
        return self.reply(request, 200, json.dumps(found).encode(), {}, True)

    @staticmethod
    def modes(given: str) -> dict[str, object]:
        large = {True: "lfs", False: "regular"}
        names = [one["path"] for one in json.loads(given)["files"]]
        files = [{"path": name, "uploadMode": large[name.endswith(".onnx")], "shouldIgnore": False} for name in names]
        return {"files": files}

    def committed(self, repo: str, given: str) -> dict[str, object]:
        for line in map(json.loads, given.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
                continue
            whole = self.large[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
            file = self.root / repo / value["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(whole)
        commit = self.commit(repo)
        return {"commitUrl": f"{self.address}/{repo}/commit/{commit}", "commitOid": commit}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelHub]:
    made = ModelHub(tmp_path_factory.mktemp("hub"))
    yield made
    made.server.shutdown()
    made.server.server_close()


def push(
    store: Store, run: str, to: str, address: str, home: Path, *more: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its settings when it is imported."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "smallalign_core", "push", run, to, "--json", "--store", str(store.root), *more],
        env=given
        | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", **environment},
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def test_a_run_arrives_whole_and_computes_the_same(taught: Taught, hub: ModelHub, tmp_path: Path) -> None:
    store, _, run = taught
    done = push(store, run.id, "hf://me/digits", hub.address, tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    folder = hub.root / "me" / "digits"
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert there == set(said["files"])
    assert {
        "README.md",
        "config.json",
        "preprocessor_config.json",
        "onnx/model.onnx",
        "model.onnx",
        "parity.json",
    } <= there
    assert not [name for name in there if name.endswith((".png", ".bin", ".npy", ".jpg"))], "no images"
    assert said["private"] is True
    assert said["sha256"] == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert hub.messages == [f"SmallAlign run {run.id}, fp32"]

    assert run.result is not None
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(front)["model-index"][0]["results"][0]
    assert found["metrics"][0]["value"] == pytest.approx(run.result["test"]["accuracy"], abs=1e-6)
    assert said["sha256"] in card
    assert '"me/digits"' in card
    config = json.loads((folder / "config.json").read_text())
    classes = run.result["classes"]
    assert [config["id2label"][str(place)] for place in range(len(classes))] == list(classes)
    assert config["label2id"][classes[3]] == 3

    # As transformers.js: no preprocessing but grey, then one float tensor in, and the logits out.
    steps = json.loads((folder / "preprocessor_config.json").read_text())
    assert steps["do_convert_grayscale"]
    assert not any(steps[name] for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"))
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    (door,) = session.get_inputs()
    assert (door.name, door.type) == ("pixel_values", "tensor(float)")
    images = data.load(run.data, store.data_cache).test
    (logits,) = session.run(["logits"], {"pixel_values": images.images.astype(np.float32)})
    wanted = export.OnnxClassifier((folder / "model.onnx").read_bytes()).logits_of(images)
    assert np.abs(logits - wanted).max() < 1e-4
    done = command("verify", folder / "model.onnx", "--proof", folder / "parity.json", store=store)
    assert done.returncode == 0, done.stderr


def test_a_repository_that_exists_is_changed_on_request_only(taught: Taught, hub: ModelHub, tmp_path: Path) -> None:
    store, teacher, run = taught
    assert push(store, run.id, "hf://me/twice", hub.address, tmp_path, "--public").returncode == 0
    assert hub.private["me/twice"] is False
    before = (hub.root / "me" / "twice" / "model.onnx").read_bytes()
    done = push(store, teacher.id, "hf://me/twice", hub.address, tmp_path)
    assert done.returncode == 2
    assert "exists already (given: hf://me/twice). Choose another name, or add --update" in done.stderr
    assert (hub.root / "me" / "twice" / "model.onnx").read_bytes() == before
    done = push(store, teacher.id, "hf://me/twice", hub.address, tmp_path, "--update")
    assert done.returncode == 2
    assert "The repository is public, not private (given: hf://me/twice). Add --public" in done.stderr
    assert (hub.root / "me" / "twice" / "model.onnx").read_bytes() == before
    done = push(store, teacher.id, "hf://me/twice", hub.address, tmp_path, "--update", "--public")
    assert done.returncode == 0, done.stderr
    assert (hub.root / "me" / "twice" / "model.onnx").read_bytes() != before
    done = push(store, teacher.id, "hf://me/none", hub.address, tmp_path, "--update")
    assert done.returncode == 2
    assert "no such repository" in done.stderr


def test_a_repository_is_read_by_those_who_were_named() -> None:
    for same in (True, False):
        _push._check_visibility("hf://me/x", private=same, public=not same)
    with pytest.raises(Refused, match="is private, not public"):
        _push._check_visibility("hf://me/x", private=True, public=True)


def test_what_cannot_be_pushed_is_one_sentence(taught: Taught, hub: ModelHub, tmp_path: Path) -> None:
    store, _, run = taught
    for to, address, environment, words in (
        ("hf://me/x", hub.address, {"HF_TOKEN": ""}, "no token for the Hugging Face hub"),
        ("hf://me/x/", hub.address, {"HF_TOKEN": "hf_other"}, "use a token that may write to me."),
        ("hf://me/x", nowhere(), {}, "the hub cannot be reached"),
        ("hf://me/x", hub.address, {"HF_HUB_OFFLINE": "1"}, "the hub's client is offline"),
    ):
        done = push(store, run.id, to, address, tmp_path, **environment)
        assert done.returncode == 2, done.stderr
        assert words.lower() in done.stderr.lower(), done.stderr
        assert "Traceback" not in done.stderr
    assert "me/x" not in hub.private


def test_addresses_and_unfinished_runs_are_refused_before_anything_is_loaded(taught: Taught, store: Store) -> None:
    for to in ("digits", "hf://one", "hf://a/b/c", "hf://../b", "hf://a/..", ""):
        done = command("push", taught[2].id, to, store=taught[0])
        assert done.returncode == 2
        assert "cannot be read" in done.stderr
    from conftest import tiny

    run = store.submit(tiny())
    done = command("push", run.id, "hf://a/b", store=store)
    assert done.returncode == 2
    assert "not finished" in done.stderr
