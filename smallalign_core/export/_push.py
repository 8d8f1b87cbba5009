"""A run in a model repository of the Hugging Face hub: the file and its proof, a card, and what transformers.js reads.

No image leaves the machine. A host is contacted only here: HF_ENDPOINT, else huggingface.co.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from onnx import TensorProto, helper

from smallalign_core import data
from smallalign_core.errors import BadInput, Refused, SmallAlignError, WorkFailed
from smallalign_core.export._bundle import bundle, bundle_folder, kept_bundle
from smallalign_core.export._runtime import OnnxClassifier, nhwc
from smallalign_core.runs.store import Run, Store
from smallalign_core.spec.precision import Precision, file_name
from smallalign_core.system import extras

WHAT = "a push to the Hugging Face hub"
ADDRESS = re.compile(r"hf://(?:models/)?([\w-][\w.-]*/[\w-][\w.-]*)/?")
COMPARED = 256
"""Test images on which both files are compared."""


@dataclass(frozen=True)
class Pushed:
    """What is on the hub now.

    Attributes:
        commit: the hub's id of it.
        sha256: of `model.onnx`.
    """

    repo: str
    url: str
    commit: str
    private: bool
    run: str
    sha256: str
    files: tuple[str, ...]


def push(
    run: Run,
    store: Store,
    address: str,
    *,
    public: bool = False,
    update: bool = False,
    precision: Precision = "fp32",
) -> Pushed:
    """Create a model repository and upload a finished run as one commit.

    Args:
        address: `hf://owner/name`.
        public: whether everybody can read the repository: the one created now, or that of `update`.
        update: commit to a repository that exists, instead of refusing it.

    Raises:
        BadInput: the address cannot be read; there is no token; the repository exists; the hub refuses, or does not
            answer.
        MissingExtra: huggingface_hub is not installed.
        Refused: the run is not finished, or was imported; the repository that exists is public, and `public` was not
            given, or the other way round.
    """
    named = ADDRESS.fullmatch(address)
    if named is None or ".." in address:
        raise BadInput("the address of a Hugging Face model cannot be read", given=address, do="write hf://owner/name")
    if run.imported is not None:
        raise Refused(
            "the model was imported, not trained here", given=run.name, do="upload the file that it came from"
        )
    run.require_finished(headless=False)
    hub = extras.load("huggingface_hub", WHAT)
    if hub.get_token() is None:
        do = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
        raise BadInput("there is no token for the Hugging Face hub", given=address, do=do)
    report = kept_bundle(run, store, precision) or bundle(run, store, precision=precision)
    files = files_of(run, store, report, named[1])
    api, repo = hub.HfApi(), named[1]
    with _answering(address, repo), _quiet(hub):
        if update:
            _check_visibility(address, private=bool(api.model_info(repo).private), public=public)
        else:
            _create(api, repo, address, private=not public)
        adds = [hub.CommitOperationAdd(name, content) for name, content in files.items()]
        made = api.create_commit(repo, adds, commit_message=f"SmallAlign run {run.id}, {precision}")
        private = bool(api.model_info(repo).private)
    names = tuple(files)
    return Pushed(repo, f"{api.endpoint}/{repo}", made.oid, private, run.id, report["sha256"], names)


def _check_visibility(address: str, *, private: bool, public: bool) -> None:
    """A commit goes to those who can read the repository as it is: not to everybody without `public`.

    Raises:
        Refused: the repository is public and was not named so, or the other way round.
    """
    if private == public:
        is_, other = ("private", "public") if private else ("public", "private")
        do = "leave --public out, or change its visibility on the hub" if private else "add --public to upload to it"
        raise Refused(f"the repository is {is_}, not {other}", given=address, do=do)


def _create(api: Any, repo: str, address: str, *, private: bool) -> None:
    errors = extras.load("huggingface_hub.errors", WHAT)
    try:
        api.create_repo(repo, private=private)
    except errors.HfHubHTTPError as error:
        if error.response.status_code != HTTPStatus.CONFLICT:
            raise
        do = "choose another name, or add --update to commit to it"
        raise BadInput("the repository exists already", given=address, do=do) from None


def files_of(run: Run, store: Store, report: dict[str, Any], repo: str) -> dict[str, bytes]:
    """The files of the repository by name.

    Args:
        report: of the run's bundle.

    Raises:
        WorkFailed: the file for transformers.js does not compute the same.
    """
    with zipfile.ZipFile(bundle_folder(run, store) / file_name("model.zip", report["variant"])) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    content, card = files["model.onnx"], files.pop("card.md").decode()
    channels, classes = report["shape"][3], report["classes"]
    browser = for_transformers(content)
    test = data.load(run.data, store.data_cache).test
    pixels = nhwc(test.take(np.arange(min(len(test), COMPARED))))
    session = onnxruntime.InferenceSession(browser, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"pixel_values": pixels.transpose(0, 3, 1, 2).astype(np.float32)})
    if not np.allclose(found, OnnxClassifier(content).logits(pixels), rtol=1e-4, atol=1e-5):
        raise WorkFailed("the file for transformers.js does not compute what the export computes", given=run.name)
    config = {
        "model_type": "resnet",  # transformers.js refuses types without a class; it runs all classifiers alike
        "architectures": ["ResNetForImageClassification"],
        "num_channels": channels,
        "image_size": max(report["shape"][1:3]),
        "id2label": {str(place): name for place, name in enumerate(classes)},
        "label2id": {name: place for place, name in enumerate(classes)},
        "transformers.js_config": {"dtype": "fp32"},  # the name of the file without an ending for a smaller precision
    }
    kind = {"image_processor_type": "ImageProcessor"}
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad")  # all inside the model
    colors = {"do_convert_rgb": channels == 3, "do_convert_grayscale": channels == 1}
    return {
        "README.md": (_front(run, report) + card + _usage(repo)).encode(),
        "config.json": _json(config),
        "preprocessor_config.json": _json(kind | dict.fromkeys(steps, False) | colors),
        "onnx/model.onnx": browser,
        **files,
    }


def for_transformers(content: bytes) -> bytes:
    """An export of ours with the input that transformers.js gives: `pixel_values`, float32 [N, C, H, W], 0 to 255."""
    model = onnx.load_model_from_string(content)
    graph = model.graph
    (images,) = graph.input
    sides = [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim]
    shape = [sides[0], sides[3], sides[1], sides[2]]
    first = [
        helper.make_node("Round", ["pixel_values"], ["pixel_values_rounded"]),
        helper.make_node("Cast", ["pixel_values_rounded"], ["pixel_values_uint8"], to=TensorProto.UINT8),
        helper.make_node("Transpose", ["pixel_values_uint8"], [images.name], perm=[0, 2, 3, 1]),
    ]
    nodes = [*first, *graph.node]
    del (
        graph.node[:],
        graph.input[:],
        model.metadata_props[:],
    )  # the metadata has the checksum of the file without these
    graph.node.extend(nodes)
    graph.input.append(helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, shape))
    return model.SerializeToString()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _front(run: Run, report: dict[str, Any]) -> str:
    """The YAML at the beginning of a README, which the hub lists and searches."""
    test = (run.result or {})["test"]
    kind, of = "image-classification", Path(run.data.source).name  # no path of this machine
    score = {
        "type": "accuracy",
        "value": round(float(test["accuracy"]), 6),
        "name": f"on {test['images']:,} test images",
    }
    found = {"task": {"type": kind}, "dataset": {"name": of, "type": of}, "metrics": [score]}
    held = {
        "pipeline_tag": kind,
        "library_name": "transformers.js",
        "tags": ["onnx", "smallalign", report["precision"]],
        "metrics": ["accuracy"],
        "model-index": [{"name": run.name, "results": [found]}],
    }
    return f"---\n{yaml.safe_dump(held, sort_keys=False, allow_unicode=True)}---\n\n"


def _usage(repo: str) -> str:
    return f"""
## With transformers.js

`onnx/model.onnx` is the same network with the input `pixel_values` (float32 [N, channels, height, width], 0 to 255);
the proof above is of `model.onnx`, with which it was compared before the upload. `config.json` names a model type that
transformers.js has a class for, since it refuses others; the network is the one above.

    const classify = await pipeline("image-classification", "{repo}");

It applies softmax to the logits; the calibrated probabilities are the output `probabilities`.
"""


@contextlib.contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    hub.utils.disable_progress_bars()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hub.utils.enable_progress_bars()


@contextlib.contextmanager
def _answering(address: str, repo: str) -> Iterator[None]:
    """Errors of the hub and its client as one sentence."""
    errors = extras.load("huggingface_hub.errors", WHAT)
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        yield
    except SmallAlignError:
        raise
    except errors.OfflineModeIsEnabled:
        raise BadInput("the hub's client is offline", given=address, do="unset HF_HUB_OFFLINE") from None
    except errors.RepositoryNotFoundError:
        do = "check owner and name; leave --update out to create it"
        raise BadInput("there is no such repository, or the token may not see it", given=address, do=do) from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code in (401, 403):
            do = f"use a token that may write to {repo.partition('/')[0]}"
            raise BadInput("the hub refused the token", given=f"{address} at {host}", do=do) from None
        words = " ".join(str(error).split())[:150]
        raise BadInput(
            f"the hub answered {code}: {words}", given=address, do="try again, with --update if it exists"
        ) from None
    except Exception as error:  # the clients of different versions of the hub raise errors of their own
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in CLIENTS:
            raise
        do = "connect to the internet and try again, with --update if the repository exists"
        raise BadInput(
            f"the hub cannot be reached ({type(error).__name__})", given=f"{address} at {host}", do=do
        ) from None


CLIENTS = ("httpx", "httpx2", "httpcore", "requests")
