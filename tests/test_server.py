"""The routes and the wall that `app.py` plugs into Streamlit: what they serve, what they refuse, what they say."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket

from pages.ui.app.server import routes
from pages.ui.browser._npm import FILES, Packages, compressed
from pages.ui.security.middleware import middleware

LOCAL = ("127.0.0.1", 50_000)
MODEL = bytes(range(256)) * 40


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one exported file, one secret beside the folder, and links that try to leave."""
    export = tmp_path / "runs" / "abc-1" / "export"
    export.mkdir(parents=True)
    (export / "model.onnx").write_bytes(MODEL)
    (export / "card.json").write_text(json.dumps({"classes": ["a"] * 500}))
    (export / "folder").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (export / "link.txt").symlink_to(tmp_path / "secret.txt")
    (export / "inner.onnx").symlink_to(export / "model.onnx")
    return tmp_path


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    """Installed npm packages, made up: every served file, one of them compressed, and one that is not on the list."""
    folder = tmp_path / "npm"
    locked = {f"node_modules/{name}": {"version": "1.2.3"} for name in FILES}
    for name, files in FILES.items():
        for file in (*files, "package.json"):
            path = folder / "node_modules" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} {file} ".encode() * 200)
    (folder / "package-lock.json").write_text(json.dumps({"packages": locked}))
    (folder / "node_modules" / ".package-lock.json").write_text(json.dumps({"packages": locked}))
    wasm = folder / "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm"
    compressed(wasm).write_bytes(gzip.compress(wasm.read_bytes(), mtime=0))
    return Packages(folder)


def build(store: Path, packages: Packages, hosts: tuple[str, ...] = ()) -> Starlette:
    """The routes and the wall around a stand-in for Streamlit, with a compression layer inside as Streamlit has."""

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close()

    return Starlette(
        routes=[
            *routes(lambda run, name: store / "runs" / run / "export" / name, packages),
            Route("/", lambda _: PlainTextResponse("page")),
            Route("/_stcore/metrics", lambda _: PlainTextResponse("metrics")),
            WebSocketRoute("/_stcore/stream", socket),
        ],
        middleware=[*middleware(hosts), Middleware(GZipMiddleware, minimum_size=10)],
    )


@pytest.fixture
def client(store: Path, packages: Packages) -> TestClient:
    """A user on this machine."""
    return TestClient(build(store, packages), base_url="http://localhost:8501", client=LOCAL)


def test_an_artifact_arrives_whole_with_its_digest_and_uncompressed(client: TestClient) -> None:
    answer = client.get("/artifacts/abc-1/model.onnx", headers={"Accept-Encoding": "gzip"})
    assert answer.status_code == 200
    assert answer.content == MODEL
    assert answer.headers["etag"] == f'"{hashlib.sha256(MODEL).hexdigest()}"'
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-length"] == str(len(MODEL))
    assert "content-disposition" not in answer.headers


def test_an_artifact_is_sent_once(client: TestClient) -> None:
    etag = client.get("/artifacts/abc-1/model.onnx").headers["etag"]
    assert client.get("/artifacts/abc-1/model.onnx", headers={"If-None-Match": etag}).status_code == 304
    assert client.get("/artifacts/abc-1/model.onnx", headers={"If-None-Match": f'W/{etag}, "other"'}).status_code == 304
    assert client.get("/artifacts/abc-1/model.onnx", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_digest_follows_the_file(client: TestClient, store: Path) -> None:
    before = client.get("/artifacts/abc-1/model.onnx").headers["etag"]
    (store / "runs/abc-1/export/model.onnx").write_bytes(b"retrained")
    after = client.get("/artifacts/abc-1/model.onnx")
    assert after.content == b"retrained"
    assert after.headers["etag"] != before


def test_a_part_of_an_artifact(client: TestClient) -> None:
    answer = client.get("/artifacts/abc-1/model.onnx", headers={"Range": "bytes=100-199"})
    assert answer.status_code == 206
    assert answer.content == MODEL[100:200]
    assert answer.headers["content-range"] == f"bytes 100-199/{len(MODEL)}"
    assert client.get("/artifacts/abc-1/model.onnx", headers={"Range": "bytes=999999-"}).status_code == 416


def test_a_download_is_named_after_run_and_file(client: TestClient) -> None:
    answer = client.get("/artifacts/abc-1/model.onnx?download=1")
    assert answer.headers["content-disposition"] == 'attachment; filename="abc-1-model.onnx"'


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/abc-1/other.onnx",
        "/artifacts/other/model.onnx",
        "/artifacts/abc-1/folder",
        "/artifacts/abc-1/link.txt",
        "/artifacts/abc-1/inner.onnx",
        "/artifacts/abc-1/..",
        "/artifacts/abc-1/...",
        "/artifacts/abc-1/%2e%2e",
        "/artifacts/abc-1/..%2f..%2f..%2fsecret.txt",
        "/artifacts/abc-1/..%5csecret.txt",
        "/artifacts/..%2f..%2fabc-1/model.onnx",
        "/artifacts/../../secret.txt",
        "/artifacts/ABC-1/model.onnx",
        "/artifacts/abc-1/model.onnx%00.txt",
        "/artifacts/abc-1/model.onnx%0a",
        "/artifacts/abc-1/" + "a" * 65,
        "/artifacts/" + "a" * 65 + "/model.onnx",
        "/artifacts/abc-1/m%C3%B6del.onnx",
        "/artifacts/%2fetc/passwd",
    ],
)
def test_nothing_but_exported_files_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "secret" not in answer.text
    assert str(Path.cwd()) not in answer.text


def test_locate_is_asked_for_safe_names_only(packages: Packages) -> None:
    requests: list[tuple[str, str]] = []
    app = Starlette(routes=list(routes(lambda run, name: requests.append((run, name)), packages)))
    user = TestClient(app, base_url="http://localhost")
    for name in ("..", ".", "a%2fb", "a%5cb", "a b", "%00"):
        user.get(f"/artifacts/run/{name}")
    assert requests == []
    user.get("/artifacts/run/a.onnx")
    assert requests == [("run", "a.onnx")]


def test_our_modules_are_checked_for_changes_every_time(client: TestClient) -> None:
    answer = client.get("/assets/parity.mjs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/javascript")
    assert answer.headers["cache-control"] == "no-cache"
    assert client.get("/assets/parity.mjs", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_a_package_file_is_kept_for_good_and_comes_compressed(client: TestClient, packages: Packages) -> None:
    path = "/assets/onnxruntime-web/1.2.3/dist/ort-wasm-simd-threaded.wasm"
    expected = (packages.folder / "node_modules/onnxruntime-web/dist/ort-wasm-simd-threaded.wasm").read_bytes()
    answer = client.get(path, headers={"Accept-Encoding": "br, gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-type"] == "application/wasm"
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.content == expected
    for refused in ("identity", "br", "gzip;q=0"):
        plain = client.get(path, headers={"Accept-Encoding": refused})
        assert "content-encoding" not in plain.headers
        assert plain.content == expected


@pytest.mark.parametrize(
    "path",
    [
        "/assets/onnxruntime-web/1.2.4/dist/ort.wasm.min.mjs",
        "/assets/onnxruntime-web/1.2.3/package.json",
        "/assets/onnxruntime-web/1.2.3/dist/../package.json",
        "/assets/onnxruntime-web/1.2.3/dist/%2e%2e/package.json",
        "/assets/left-pad/1.2.3/index.js",
        "/assets/__init__.py",
        "/assets/package.json",
        "/assets/_npm.py",
        "/assets/none.mjs",
        "/assets/..%2fserver.py",
    ],
)
def test_no_other_file_of_the_repository_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_every_answer_carries_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/assets/parity.mjs", "/artifacts/abc-1/model.onnx", "/nothing"):
        headers = client.get(path).headers
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-embedder-policy"] == "require-corp"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        policy = {rule.split()[0]: rule.split()[1:] for rule in headers["content-security-policy"].split(";")}
        assert policy["object-src"] == policy["frame-ancestors"] == ["'none'"]
        assert "'unsafe-inline'" not in policy["script-src"]
        assert "'unsafe-eval'" not in policy["script-src"]
        assert any(source.startswith("'sha256-") for source in policy["script-src"])
        assert policy["connect-src"] == ["'self'", "ws://localhost:8501", "wss://localhost:8501", "data:"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:8501", "127.8.8.8", "[::1]:8501", "lab.example"]
)
def test_known_hosts_are_served(store: Path, packages: Packages, host: str) -> None:
    user = TestClient(build(store, packages, hosts=("lab.example",)), base_url="http://localhost", client=LOCAL)
    assert user.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "192.168.1.5",
        "",
        "localhost; x",
        "localhost:80:80",
        "a@localhost",
    ],
)
def test_a_foreign_host_is_refused_in_a_sentence(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"Host": host})
    assert answer.status_code == 421
    assert "Host name not allowed" in answer.text


def test_a_socket_of_a_foreign_host_is_refused(client: TestClient) -> None:
    address, origin = "ws://localhost:8501/_stcore/stream", {"Origin": "http://localhost:8501"}
    with client.websocket_connect(address, headers={"Host": "localhost:8501", **origin}):
        pass
    with (
        pytest.raises(WebSocketDenialResponse) as refusal,
        client.websocket_connect(address, headers={"Host": "evil.example", **origin}),
    ):
        pass
    assert refusal.value.status_code == 421
    assert "Host name not allowed" in refusal.value.text


def test_metrics_are_for_this_machine(store: Path, packages: Packages, client: TestClient) -> None:
    assert client.get("/_stcore/metrics").text == "metrics"
    assert client.get("/_stcore/metrics", headers={"X-Forwarded-For": "10.0.0.9"}).status_code == 403
    stranger = TestClient(build(store, packages), base_url="http://localhost", client=("10.0.0.9", 1))
    assert stranger.get("/_stcore/metrics").status_code == 403
    assert stranger.get("/").status_code == 200


def test_packages_count_as_installed_only_in_the_locked_version(packages: Packages) -> None:
    assert packages.installed()
    lock = packages.folder / "node_modules" / ".package-lock.json"
    lock.write_text(lock.read_text().replace("1.2.3", "1.2.2"))
    assert not packages.installed()
    lock.unlink()
    assert not packages.installed()
