"""Private parts of other libraries: they are as we think, they do what the documented way does, and only `_compat`
modules name them.
"""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import streamlit as st
import torch
import typer
from conftest import ROOT
from streamlit.testing.v1 import AppTest
from torch import nn

from pages.ui import _compat as pages_compat
from pages.ui.security import auth, middleware
from smallalign_core.cli import _compat as verbs_compat
from smallalign_core.cli._main import app
from smallalign_core.networks import onnx_graph
from smallalign_core.spec import AdamW, Sgd
from smallalign_core.system import _compat
from smallalign_core.training import optim

OURS = ("smallalign_core", "pages")


# --- torch ------------------------------------------------------------------------------------------------------------


def steps(kind: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weights after some steps of our optimizer."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)).to(dtype)
    spec = {"sgd": Sgd(lr=0.05), "adamw": AdamW(lr=0.01)}[kind]
    optimizer = optim.build(spec, network)
    for _ in range(7):
        optimizer.zero_grad()
        network(torch.randn(16, 9, dtype=dtype)).square().mean().backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(network.parameters()).detach()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_fused_step_is_there_and_is_the_documented_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"fused_{kind}"
    assert getattr(_compat, name)() is not None, (
        f"torch {torch.__version__} has no {name}: the documented step is taken"
    )
    fused = steps(kind)
    monkeypatch.setattr(_compat, name, lambda: None)
    assert torch.equal(fused, steps(kind))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("change", ["gone", "other arguments", "other values"])
def test_a_fused_step_that_changed_is_not_taken(kind: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = steps(kind)
    probe, kernel = getattr(_compat, f"fused_{kind}"), f"_fused_{kind}_"
    private = getattr(torch, kernel)

    def other_values(*given: Any, **named: Any) -> None:
        private(*given, **named)
        given[0][0].mul_(1.5)

    changed = {"gone": None, "other arguments": lambda: None, "other values": other_values}
    # The documented way leads to the same kernel, by the same name: it keeps the true one.
    monkeypatch.setattr(_compat, "torch", _Torch({kernel: changed[change]}))
    probe.cache_clear()
    try:
        assert probe() is None
        assert torch.equal(before, steps(kind))
    finally:
        probe.cache_clear()


class _Torch:
    """torch, with other values of some names."""

    def __init__(self, other: dict[str, Any]) -> None:
        self._other = other

    def __getattr__(self, name: str) -> Any:
        return self._other[name] if name in self._other else getattr(torch, name)


FOREACH = {
    "add_": (1,),
    "mul_": (0.9,),
    "sub_": ("tensors",),
    "sub": ("tensors",),
    "div": ([2.0, 3.0, 0.5],),
    "sqrt_": (),
    "addcmul_": ("tensors", "tensors", 0.1),
    "lerp_": ("tensors", 0.25),
    "copy_": ("tensors",),
}


@pytest.mark.parametrize("name", FOREACH)
def test_many_tensors_at_once_are_one_after_the_other(name: str) -> None:
    assert hasattr(torch, f"_foreach_{name}"), "torch has it no more: one after the other is taken"
    found = []
    for call in (_compat.foreach(name), _compat.one_by_one(name)):
        torch.manual_seed(0)
        tensors, others = ([torch.rand(5), torch.rand(2, 3), torch.rand(())] for _ in range(2))
        made = call(tensors, *([*others] if one == "tensors" else one for one in FOREACH[name]))
        found.append(tensors if name.endswith("_") else made)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_every_batch_norm_of_torch_is_one_of_ours() -> None:
    from torch.nn.modules.batchnorm import _BatchNorm

    made = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)]
    assert all(isinstance(one, _compat.BATCH_NORMS) and isinstance(one, _BatchNorm) for one in made)
    plain = {one for one in _BatchNorm.__subclasses__() if one.__module__.startswith("torch.nn.modules")}
    lazy = {one for one in plain if one.__name__.startswith("Lazy")}  # become one of the others when they are called
    assert plain - lazy == set(_compat.BATCH_NORMS)


@pytest.mark.slow
def test_the_compiler_is_loaded_by_the_first_optimizer_and_not_by_inference() -> None:
    code = (
        "import sys, torch; from smallalign_core.system import _compat, batching; seen = lambda: 'torch._dynamo' in "
        "sys.modules; batching.batch_that_fits(torch.nn.Linear(2, 2), torch.zeros(9, 2)); print(seen()); "
        "_compat.load_compiler(); print(seen())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_packed_weights_answer_as_the_layer_and_a_change_leaves_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, given = nn.Linear(16, 8).bfloat16(), torch.randn(5, 16)
    forward = _compat.packed_linear(layer)
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert (forward is not None) == supported
    if forward is not None:
        with torch.no_grad():
            assert torch.equal(forward(given), layer(given.bfloat16()))
    monkeypatch.setattr(_compat, "torch", _Torch({"ops": SimpleNamespace(mkldnn=SimpleNamespace())}))
    assert _compat.packed_linear(layer) is None


# --- typer ------------------------------------------------------------------------------------------------------------


def test_the_error_of_a_command_line_is_found_through_typers_documented_one() -> None:
    where = verbs_compat.ClickException.__module__
    assert where in ("typer._click.exceptions", "click.exceptions"), "newer typer carries click, older depends on it"
    with pytest.raises(verbs_compat.ClickException) as refused:
        app(["train", "--nonsense"], standalone_mode=False)
    assert "--nonsense" in refused.value.format_message()
    assert issubclass(typer.BadParameter, verbs_compat.ClickException)


# --- Streamlit --------------------------------------------------------------------------------------------------------


def test_streamlits_parts_are_there() -> None:
    """Each has a fallback with fewer rights or less knowledge, so their going would not be noticed otherwise."""
    from streamlit.runtime import Runtime
    from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager

    assert pages_compat._context is not None
    assert pages_compat._auth_section is not None
    assert pages_compat._signed is not None
    files = MemoryUploadedFileManager("/upload")
    assert files.file_storage == {}
    assert list(inspect.signature(files.remove_file).parameters) == ["session_id", "file_id"]
    assert list(inspect.signature(files.add_file).parameters) == ["session_id", "file"]
    (url,) = files.get_upload_urls("a", ["x.png"])
    assert url.upload_url == url.delete_url == f"/upload/a/{url.file_id}"
    assert pages_compat._Upload("id", "", "", b"x").data == b"x"
    assert "_session_mgr" in inspect.getsource(Runtime.__init__)
    assert "<script" in pages_compat.page_source()
    assert len(middleware._inline_scripts()) == 1


def test_a_visit_is_known_inside_of_a_page_only() -> None:
    def page() -> None:
        import streamlit as st

        from pages.ui import _compat

        st.text(_compat.session())

    assert pages_compat.session() is None
    assert pages_compat.documented_session() is None
    assert AppTest.from_function(page, default_timeout=60).run().text[0].value == "test session id"


@pytest.mark.parametrize(
    "text",
    [None, "", "other = 1", '[auth]\nclient_id = "x"\ncookie_secret = "s"'],
    ids=["no file", "empty", "no", "yes"],
)
def test_the_login_is_the_same_by_the_documented_way(
    text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamlit.runtime.secrets import Secrets

    file = tmp_path / "secrets.toml"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr("streamlit.config.get_option", _option(str(file)))
    secrets = Secrets()
    monkeypatch.setattr("streamlit.auth_util.secrets_singleton", secrets)
    monkeypatch.setattr(st, "secrets", secrets)
    found = dict(pages_compat.login_section())
    assert found == dict(pages_compat.documented_login_section())
    assert bool(found) == (text is not None and "auth" in text)


def _option(file: str) -> Any:
    from streamlit import config

    true = config.get_option
    return lambda name: [file] if name == "secrets.files" else true(name)


def test_without_streamlits_cookie_a_request_has_no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamlit.web.server.server_util import get_cookie_secret
    from streamlit.web.server.starlette.starlette_app_utils import create_signed_value

    claims = {"is_logged_in": True, "email": "ada@example.org"}
    name = pages_compat._COOKIE
    signed = create_signed_value(get_cookie_secret(), name, json.dumps(claims))
    cookies = {name: signed.decode() if isinstance(signed, bytes) else signed}
    assert pages_compat.claims_of_cookies(cookies) == claims
    assert pages_compat.claims_of_cookies({name: "forged"}) == {}
    monkeypatch.setattr(pages_compat, "_signed", None)
    assert pages_compat.claims_of_cookies(cookies) == {}
    monkeypatch.setattr(pages_compat, "_auth_section", lambda: {"client_id": "x"})
    assert auth.of_claims(pages_compat.claims_of_cookies(cookies)) is auth.NOT_HERE


def test_claims_of_a_proxy_are_those_that_streamlit_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.datastructures import Headers
    from streamlit import config
    from streamlit.web.server.starlette.starlette_websocket import gather_user_info

    mapping, true = {"X-Email": "email", "X-Name": "name"}, config.get_option
    for module in (config, st):
        monkeypatch.setattr(
            module, "get_option", lambda name: mapping if name == "server.trustedUserHeaders" else true(name)
        )
    headers = Headers(raw=[(b"x-email", b"ada@example.org"), (b"x-email", b"eve@example.org")])
    seen: list[Any] = []
    monkeypatch.setattr(auth, "of_claims", seen.append)
    auth.of_request(headers, {})
    assert seen == [gather_user_info(headers)]
    assert seen[0]["email"] == "ada@example.org"


# --- nobody else names them -------------------------------------------------------------------------------------------


def private(file: Path) -> list[str]:
    """Private names of other libraries in a file, and those of Streamlit that are not documented."""
    tree, foreign, found = ast.parse(file.read_text()), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [(one.name, one.asname or one.name.split(".")[0]) for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [(f"{node.module}.{one.name}", one.asname or one.name) for one in node.names]
        else:
            continue
        for path, name in modules:
            root, *rest = path.split(".")
            if root in OURS or root in sys.stdlib_module_names:
                continue
            foreign.add(name)
            if any(part.startswith("_") for part in rest):
                found.append(path)
            if root == "streamlit" and rest and rest[0] != "testing":
                found.append(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            base: ast.expr = node
            while isinstance(base, ast.Attribute | ast.Call):
                base = base.value if isinstance(base, ast.Attribute) else base.func
            if isinstance(base, ast.Name) and base.id in foreign:
                found.append(ast.unparse(node))
    return found


FILES = [file for folder in OURS for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.slow
def test_private_parts_of_other_libraries_are_named_in_compat_modules_only() -> None:
    found = {str(file.relative_to(ROOT)): private(file) for file in FILES}
    found = {name: names for name, names in found.items() if names and not name.endswith("/_compat.py")}
    assert not found


def test_the_look_for_private_parts_sees_them() -> None:
    assert "streamlit.auth_util.get_secrets_auth_section" in private(ROOT / "pages" / "ui" / "_compat.py")


# --- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_exporter_builds_its_table_of_operators_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.onnx._internal.exporter import _registration

    _compat._kept_operator_table.cache_clear()
    built: list[int] = []
    register = _registration.ONNXRegistry._cleanup_registry_based_on_opset_version
    monkeypatch.setattr(
        _registration.ONNXRegistry,
        "_cleanup_registry_based_on_opset_version",
        lambda table: (built.append(1), register(table))[1],
    )
    original = vars(_registration.ONNXRegistry)["from_torchlib"]
    torch.manual_seed(0)
    network, example = nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), torch.randn(2, 4)
    files = [onnx_graph.of_body(network, example) for _ in range(2)]
    assert len(built) == 1
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is original
    monkeypatch.setattr(_compat, "_kept_operator_table", lambda: None)
    assert onnx_graph.of_body(network, example) == files[0] == files[1]
    assert len(built) == 2
