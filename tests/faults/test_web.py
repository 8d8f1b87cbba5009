"""The web: who reaches the dashboard, who may do what there, and that no text of a user runs as a script."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import json
import os
import shutil
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import processes
import pytest
import streamlit as st
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from sklearn.datasets import load_digits
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from pages.ui import _compat, _compat_uvicorn
from pages.ui.app import context
from pages.ui.security import auth as access, middleware
from smallalign_core.errors import BadInput, Refused
from smallalign_core.runs import policies, uploads
from smallalign_core.runs.queue import UNRESTRICTED
from smallalign_core.runs.store import Run, State, Store, _take
from smallalign_core.service import handlers, worker
from smallalign_core.service.client import BackendClient
from smallalign_core.service.requests import Ablate, Inspect, StartStudy, Submit
from smallalign_core.service.users import Role, User
from smallalign_core.spec import Shift, parse_data
from smallalign_core.studies import lifecycle, optimizers
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.system.files import write_json
from smallalign_core.training.resolve import resolve
from tests.chromium import dashboard, executable, free_port, launched
from tests.conftest import ROOT, Train, tiny

VIEWER, RUNNER = User("eve@example.org", Role.VIEWER), User("ada@example.org", Role.RUNNER)
LOCAL = ("127.0.0.1", 50_000)
HERE = "http://localhost:8501"


# --- the wall ---------------------------------------------------------------------------------------------------------


def fails(_: Request) -> Response:
    raise RuntimeError("secret of the stack")


def build(*hosts: str) -> Starlette:
    """The wall around a stand-in for Streamlit."""

    async def put(request: Request) -> Response:
        await request.body()
        return Response(status_code=204)

    return Starlette(
        routes=[
            Route("/", lambda _: HTMLResponse("page")),
            Route("/fails", fails),
            Route("/_stcore/upload_file/{session}/{file}", put, methods=["PUT", "DELETE"]),
            Route("/artifacts/{run}/{name}", lambda _: PlainTextResponse("model")),
            Route("/_stcore/metrics", lambda _: PlainTextResponse("metrics")),
        ],
        middleware=middleware.middleware(hosts),
    )


@pytest.fixture
def client() -> TestClient:
    """A user on this machine, to a server that shows its errors to nobody."""
    return TestClient(build(), base_url=HERE, client=LOCAL, raise_server_exceptions=False)


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:3000", "https://localhost", "null", ""])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST"])
def test_other_sites_change_nothing(client: TestClient, origin: str, method: str) -> None:
    answer = client.request(method, "/_stcore/upload_file/a/b", headers={"Origin": origin}, content=b"x")
    assert answer.status_code == 403
    assert answer.headers["x-frame-options"] == "DENY"
    own = client.put("/_stcore/upload_file/a/b", headers={"Origin": HERE}, content=b"x")
    assert own.status_code == 204


def test_an_error_nobody_expected_is_a_sentence_with_headers(client: TestClient) -> None:
    answer = client.get("/fails")
    assert answer.status_code == 500
    assert "unexpected error" in answer.text
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_browser_is_told_from_others_by_a_cookie_no_script_reads(client: TestClient) -> None:
    told = client.get("/").headers["set-cookie"]
    assert told.startswith("smallalign_visitor=")
    assert "HttpOnly" in told
    assert "SameSite=Lax" in told
    assert "set-cookie" not in client.get("/").headers  # the client sends it now
    token = client.cookies["smallalign_visitor"]
    first, same = access.of_browser(token, "one"), access.of_browser(token, "two")
    assert first == same
    assert token not in first.name
    assert access.of_browser("forged; x", "one") != access.of_browser("forged; x", "two")


def test_who_arrives_from_elsewhere_is_refused_whatever_the_settings_say() -> None:
    user = TestClient(build(), base_url="http://192.168.1.5:8501", client=("192.168.1.9", 1))
    assert user.get("/", headers={"Host": "localhost"}).status_code == 403


@pytest.mark.parametrize(
    ("hosts", "host", "status"),
    [
        (("lab.example",), "lab.example", 200),
        (("lab.example",), "LAB.example:443", 200),
        (("lab.example",), "x.lab.example", 421),
        (("*.lab.example",), "x.lab.example", 200),
        (("*.lab.example",), "xlab.example", 421),
        ((), "[::1]:8501", 200),
        ((), "127.0.0.1.evil.example", 421),
        ((), "2130706433", 421),
        ((), "0.0.0.0", 421),
    ],
)
def test_allowed_hosts(hosts: tuple[str, ...], host: str, status: int) -> None:
    user = TestClient(build(*hosts), base_url=HERE, client=LOCAL, raise_server_exceptions=False)
    allowed = {"/": 200, "/fails?": 500, "/_stcore/metrics": 200, "/artifacts/a/b": 200, "/nothing": 404}
    for path, here in allowed.items():
        answer = user.get(path, headers={"Host": host})
        assert answer.status_code == (here if status == 200 else status), path


# --- logging in -------------------------------------------------------------------------------------------------------

LISTED = "ada@example.org, @school.example"


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """People have to log in, and some may start runs."""
    monkeypatch.setattr(_compat, "_auth_section", lambda: {"client_id": "x"})
    monkeypatch.setenv(access.RUNNERS, LISTED)
    return


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({}, Role.NOBODY),
        ({"email": "ada@example.org"}, Role.NOBODY),
        ({"is_logged_in": False, "email": "ada@example.org"}, Role.NOBODY),
        ({"is_logged_in": "yes", "email": "ada@example.org"}, Role.NOBODY),
        ({"is_logged_in": True}, Role.NOBODY),
        ({"is_logged_in": True, "email": "eve@example.org"}, Role.VIEWER),
        ({"is_logged_in": True, "email": "Ada@Example.org"}, Role.RUNNER),
        ({"is_logged_in": True, "email": "ada@example.org", "email_verified": False}, Role.VIEWER),
        ({"is_logged_in": True, "email": "anyone@school.example"}, Role.RUNNER),
        ({"is_logged_in": True, "email": "anyone@not-school.example"}, Role.VIEWER),
        ({"is_logged_in": True, "email": "x@school.example.evil"}, Role.VIEWER),
        ({"is_logged_in": True, "sub": "@school.example"}, Role.RUNNER),
        ({"is_logged_in": True, "sub": "1f3", "preferred_username": "ada@example.org"}, Role.VIEWER),
    ],
)
def test_claims_make_roles(login: None, claims: dict[str, Any], role: Role) -> None:
    assert access.of_claims(claims).role is role


def test_without_a_list_who_logs_in_may_look(login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(access.RUNNERS)
    assert access.of_claims({"is_logged_in": True, "email": "ada@example.org"}).role is Role.VIEWER
    monkeypatch.setenv(access.RUNNERS, "*")
    assert access.of_claims({"is_logged_in": True, "email": "ada@example.org"}).role is Role.RUNNER


def test_strangers_get_no_file_and_viewers_send_none(login: None, monkeypatch: pytest.MonkeyPatch) -> None:
    user = TestClient(build(), base_url=HERE, client=LOCAL)
    assert user.get("/artifacts/a/b").status_code == 403
    assert user.put("/_stcore/upload_file/a/b", headers={"Origin": HERE}).status_code == 403
    for who, sent in ((VIEWER, 403), (RUNNER, 204)):
        monkeypatch.setattr(access, "of_request", lambda *_, who=who: who)
        assert user.get("/artifacts/a/b").status_code == 200
        assert user.put("/_stcore/upload_file/a/b", headers={"Origin": HERE}).status_code == sent


@pytest.mark.parametrize("value", ["", "x", "e30.x.y", '{"is_logged_in": true, "email": "ada@example.org"}'])
def test_a_forged_login_cookie_is_nobody(login: None, value: str) -> None:
    assert access.of_request(Headers({}), {"_streamlit_user": value}).role is Role.NOBODY


@pytest.mark.parametrize(
    ("address", "hosts", "auth", "proxy", "refused"),
    [
        ("127.0.0.1", [], False, False, ""),
        ("localhost", ["localhost", "127.0.0.1", "::1"], False, False, ""),
        ("::1", [], False, False, ""),
        ("0.0.0.0", [], False, False, "without a login"),
        ("::", [], False, False, "without a login"),
        ("192.168.1.5", [], False, False, "without a login"),
        ("", [], False, False, "without a login"),  # Streamlit would listen everywhere
        ("127.0.0.1", ["lab.example"], False, False, "name of another machine"),
        ("127.0.0.1", ["*"], True, False, "may not be"),
        ("0.0.0.0", ["lab.example"], True, False, ""),
        ("127.0.0.1", ["lab.example"], False, True, ""),
        ("0.0.0.0", ["lab.example"], False, True, "without passing the login proxy"),
    ],
)
def test_nobody_else_reaches_a_dashboard_without_login(
    address: str, hosts: list[str], auth: bool, proxy: bool, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "server.address": address,
        "server.allowedHosts": hosts,
        "server.trustedUserHeaders": proxy and {"X": "email"},
    }
    monkeypatch.setattr(st, "get_option", told.__getitem__)
    monkeypatch.setattr(_compat, "_auth_section", lambda: {"client_id": "x"} if auth else {})
    if not refused:
        access.check_exposure()
        return
    with pytest.raises(Refused, match=refused):
        access.check_exposure()


@pytest.mark.slow
def test_a_server_for_everybody_without_login_does_not_start() -> None:
    command = processes.python("-m", "streamlit", "run", "app.py", "--server.port", free_port())
    done = processes.run([*command, "--server.address", "0.0.0.0"])
    assert done.returncode == 2
    assert "without a login" in done.stderr
    assert "Traceback" not in done.stderr


# --- rights, where the work is done -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_viewer_changes_nothing(store: Store, train: Train) -> None:
    run = train()
    waiting = store.submit(resolve(store, tiny(seed=5)))
    paused = store.submit(resolve(store, tiny(seed=4)))
    paused.request("pause")
    written = {"student": tiny().model_dump(mode="json", exclude={"optimizer"}), "optimizers": ["sgd"], "budgets": [1]}
    spec = resolve_study(store, "optimizers", optimizers.parse_study(written))
    study = lifecycle.create(store, "optimizers", spec)
    policies.save(store, "mine", (Shift(pixels=1),))
    watched = Store(store.root, VIEWER)
    stopped = watched.run(paused.id)
    seen = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock"}
    tries: list[Callable[[], object]] = [
        lambda: watched.submit(resolve(store, tiny(seed=6))),
        lambda: watched.enqueue(stopped),
        lambda: watched.delete(run.id),
        lambda: watched.annotate([run.id], name="mine"),
        lambda: watched.restore(run.id),
        watched.empty_trash,
        lambda: watched.run(waiting.id).request("cancel"),
        lambda: watched.run(waiting.id).request("pause"),
        lambda: watched.queue()[0].request("cancel"),
        lambda: watched.runs()[0].request("pause"),
        lambda: uploads.keep(watched, "x.zip", b"PK\x03\x04"),
        lambda: lifecycle.create(watched, "optimizers", spec.model_copy(update={"seeds": 4})),
        lambda: lifecycle.start(watched, study),
        lambda: lifecycle.pause(watched, study),
        lambda: lifecycle.delete(watched, study),
        lambda: handlers.start_study(watched, StartStudy(optimizers.parse_study(written))),
        lambda: policies.save(watched, "other", (Shift(pixels=1),)),
        lambda: policies.delete(watched, "mine"),
        lambda: handlers.submit(watched, Submit(tiny(seed=7))),
        lambda: handlers.ablate(
            watched, Ablate(tiny(augment=[{"kind": "shift", "pixels": 1}]), "augment", 1, start=True)
        ),
    ]
    for attempt in tries:
        with pytest.raises(Refused, match="Your account is read-only: you cannot"):
            attempt()
    after = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert {path: after.get(path) for path in seen} == seen
    assert {path.name for path in after.keys() - seen.keys()} <= {"facts.json"}
    assert watched.run(run.id).result is not None  # but sees everything
    assert handlers.inspect(watched, Inspect(parse_data("digits"))).images == 1797


@pytest.mark.slow
def test_the_backend_acts_for_whoever_asks(store: Store) -> None:
    asking = [VIEWER]
    client = BackendClient(store, lambda: asking[0])
    try:
        with pytest.raises(BadInput, match="Your account is read-only: you cannot start runs"):
            client.call(Submit(tiny()))
        asking[0] = RUNNER
        run = store.run(client.call(Submit(tiny())).id)
        assert json.loads((run.folder / "queued").read_text())["visitor"] == "ada@example.org"
    finally:
        client.close()


def test_a_page_outside_of_any_visit_may_only_look() -> None:
    assert access.current_user().role is Role.VIEWER
    assert Store("x").user == UNRESTRICTED  # the library and the command line


def test_a_viewer_sees_the_page_and_a_sentence(
    login: None, store: Store, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train()
    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))
    page = AppTest.from_file(str(ROOT / "pages" / "frame.py"), default_timeout=120).run()
    assert [one.label for one in page.button] == ["Log in"]
    page.user = {"is_logged_in": True, "email": "eve@example.org", "name": "Eve"}
    page.run()
    assert [one.value for one in page.text] == ["Eve · viewer"]
    page.query_params["run"] = run.id
    page.switch_page("runs.py").run()
    next(one for one in page.button if one.label == "Move to trash").click().run()
    assert any("Your account is read-only: you cannot delete runs" in error.value for error in page.error)
    assert run.finished


# --- a real login -----------------------------------------------------------------------------------------------------


class Provider(http.server.BaseHTTPRequestHandler):
    """A tiny OpenID Connect provider (Core 1.0, code flow): whoever comes is the person whose turn it is."""

    person = "eve@example.org"
    key: Any = None
    nonces: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        base = f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[index]
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/.well-known/openid-configuration":
            self._json(
                {
                    "issuer": base,
                    "authorization_endpoint": f"{base}/authorize",
                    "token_endpoint": f"{base}/token",
                    "jwks_uri": f"{base}/jwks",
                    "code_challenge_methods_supported": ["S256"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            )
        elif url.path == "/jwks":
            self._json({"keys": [self.key.as_dict(private=False)]})
        elif url.path == "/authorize":
            assert query["code_challenge_method"] == "S256"
            self.nonces["code"] = query["nonce"]
            self.send_response(302)
            self.send_header("Location", f"{query['redirect_uri']}?code=code&state={query['state']}")
            self.end_headers()
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        from joserfc import jwt

        self.rfile.read(int(self.headers["Content-Length"]))
        now, base = int(time.time()), f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[index]
        claims = {"iss": base, "aud": "smallalign", "sub": self.person, "iat": now, "exp": now + 600}
        claims |= {"nonce": self.nonces["code"], "email": self.person, "email_verified": True}
        token = jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        self._json({"access_token": "x", "token_type": "Bearer", "expires_in": 600, "id_token": token})

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def provider() -> Iterator[str]:
    """The address of an identity provider on this machine."""
    from joserfc.jwk import RSAKey

    Provider.key = RSAKey.generate_key(2048, {"kid": "one"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    if executable() is None:
        pytest.skip("no Chromium here")
    with sync_playwright() as playwright:
        started = launched(playwright, executable())
        yield started
        started.close()


@pytest.mark.browser
def test_people_log_in_and_do_what_they_may(provider: str, browser: Browser, store: Store, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "secrets.toml").write_text(
        f"""
[auth]
redirect_uri = "http://127.0.0.1:{port}/oauth2callback"
cookie_secret = "{os.urandom(16).hex()}"
client_id = "smallalign"
client_secret = "of the test"
server_metadata_url = "{provider}/.well-known/openid-configuration"
"""
    )
    environment = {
        "SMALLALIGN_STORE": str(store.root),
        "STREAMLIT_SECRETS_FILES": str(tmp_path / "secrets.toml"),
        access.RUNNERS: "ada@example.org",
    }
    with dashboard(tmp_path / "log.txt", environment=environment, port=port) as base:
        page = browser.new_page()
        page.goto(f"{base}/runs")
        expect(page.get_by_role("button", name="Log in")).to_be_visible(timeout=60_000)
        expect(page.get_by_text("Run the demo (30 s)")).to_have_count(0)
        Provider.person = "eve@example.org"
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_text("eve@example.org · viewer")).to_be_visible(timeout=60_000)
        page.get_by_role("button", name="Run the demo (30 s)").click()
        expect(page.get_by_text("Your account is read-only: you cannot start runs")).to_be_visible(timeout=60_000)
        assert store.runs() == []
        picture(page, "viewer")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("button", name="Log in")).to_be_visible(timeout=60_000)
        Provider.person = "ada@example.org"
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_text("ada@example.org · runner")).to_be_visible(timeout=60_000)
        page.get_by_role("button", name="Run the demo (30 s)").click()
        expect(page.get_by_text("Spec and command")).to_be_visible(timeout=90_000)
        assert len(store.runs()) == 1
        with contextlib.suppress(Refused):  # it may be finished already
            store.runs()[0].request("cancel")
        page.close()


def picture(page: Page, name: str) -> None:
    """Keep what the page looks like, where SMALLALIGN_SHOTS names a folder: for people who look at it."""
    if folder := os.environ.get("SMALLALIGN_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


# --- sockets and scripts, against the real server ---------------------------------------------------------------------

SCRIPT = "window.__xss=(window.__xss||0)+1"
PAYLOADS = [
    f"<img src=x onerror={SCRIPT}>",
    f'"><img src=x onerror="{SCRIPT}">',
    f"'><img src=x onerror='{SCRIPT}'>",
    f"<svg onload={SCRIPT}>",
    f"<script>{SCRIPT}<",
    f"<script src=data:,{SCRIPT}>",
    f"<body onload={SCRIPT}>",
    f"<iframe srcdoc='<script>parent.{SCRIPT}<'>",
    f"<iframe src=javascript:parent.{SCRIPT}>",
    f"<a href=javascript:{SCRIPT}>x",
    f"[x](javascript:{SCRIPT})",
    f"![x](x onerror={SCRIPT})",
    f"<details open ontoggle={SCRIPT}>",
    f"<video src=x onerror={SCRIPT}>",
    f"<audio src=x onerror={SCRIPT}>",
    f"<input autofocus onfocus={SCRIPT}>",
    f"<select autofocus onfocus={SCRIPT}>",
    f"<marquee onstart={SCRIPT}>",
    f"<object data=javascript:{SCRIPT}>",
    f"<embed src=javascript:{SCRIPT}>",
    f"<math><mi xlink:href=javascript:{SCRIPT}>",
    f"<style onload={SCRIPT}>",
    f"<style>@import 'javascript:{SCRIPT}'",
    f"<link rel=stylesheet href=x onerror={SCRIPT}>",
    f"<meta http-equiv=refresh content='0;url=javascript:{SCRIPT}'>",
    f"<form><button formaction=javascript:{SCRIPT}>x",
    f"<template><img src=x onerror={SCRIPT}>",
    f"<noscript><p title='<img src=x onerror={SCRIPT}>'>",
    f"{{{{constructor.constructor('{SCRIPT}')()}}}}",
    f"$\\href{{javascript:{SCRIPT}}}{{x}}$",
    f"`;{SCRIPT};`",
    f":material/{SCRIPT}:<img src=x onerror={SCRIPT}>",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store, Run, str]]:
    """(address, store, run, dataset): a dashboard whose class names, file names, paths and labels are all payloads."""
    place = tmp_path_factory.mktemp("hostile")
    drawn = load_digits().images.astype("uint8") * 15
    root = place / PAYLOADS[0].replace("/", "")
    for row, payload in enumerate(PAYLOADS):
        folder = root / payload.replace("/", "\u2215")[:118]
        folder.mkdir(parents=True)
        for at in range(7):
            Image.fromarray(drawn[row * 7 + at]).save(
                folder / f"{PAYLOADS[(row + at) % 30][:60].replace('/', '')}{at}.png"
            )
    (root / PAYLOADS[1].replace("/", "")[:100]).mkdir(exist_ok=True)
    store = Store(place / "models")
    spec = resolve(store, tiny(data=str(root), epochs=1, batch=32))
    run = store.create(spec)
    worker.execute(run, store, device="cpu")
    for at, reason in enumerate(PAYLOADS[:3]):  # runs that failed, each with a payload as its reason
        failed = store.create(resolve(store, tiny(data=str(root), seed=10 + at)))
        write_json(failed.folder / "state.json", {"ended": "failed", "reason": reason})
        (failed.folder / "log.txt").write_text("\n".join(PAYLOADS))
    with dashboard(place / "log.txt", environment={"SMALLALIGN_STORE": str(store.root)}) as base:
        yield base, store, run, str(root)


@pytest.mark.browser
def test_no_text_of_a_user_runs(hostile: tuple[str, Store, Run, str], browser: Browser) -> None:
    base, store, run, source = hostile
    failed = next(one for one in store.runs() if one.state is State.FAILED)
    visits = [
        ("/", {}),
        ("/data", {"data": source}),
        ("/augment", {"data": source}),
        ("/distil", {"data": source, "teacher": run.id}),
        ("/runs", {}),
        ("/runs", {"filter": PAYLOADS[0]}),
        ("/runs", {"run": run.id, "tab": "Per class"}),
        ("/runs", {"run": failed.name, "tab": "Log"}),
        ("/runs", {"run": PAYLOADS[1]}),
        ("/compare", {"teacher": run.id, "student": run.id}),
        ("/compare", {"teacher": PAYLOADS[0], "student": PAYLOADS[3]}),
        ("/export", {"run": run.id}),
        ("/data", {"data": PAYLOADS[1]}),
        ("/data", {"data": source, "class": PAYLOADS[0], "split": PAYLOADS[2]}),
        ("/augment", {"data": source, "policy": PAYLOADS[0]}),
    ]
    reports: list[str] = []
    page = browser.new_page()

    def heard(message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            reports.append(message.text)

    page.on("console", heard)
    page.on("dialog", lambda dialog: (reports.append(dialog.message), dialog.dismiss()))
    for path, query in visits:
        page.goto(f"{base}{path}?{urllib.parse.urlencode(query)}")
        expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=60_000)
        page.wait_for_timeout(1_200)
        expect(page.get_by_test_id("stMain")).not_to_be_empty()
        assert page.evaluate("window.__xss") is None, (path, query)
    assert reports == []
    seen = page.content()
    page.close()
    assert "SmallAlign" in seen


def shake(port: int, host: str, origin: str | None) -> int:
    """The status with which the server answers a socket's handshake."""
    lines = [
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: streamlit",
        *([f"Origin: {origin}"] if origin else []),
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        line.sendall(("GET /_stcore/stream HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode())
        return int(line.recv(200).split()[1])


@pytest.mark.browser
def test_the_real_server_holds_its_wall(hostile: tuple[str, Store, Run, str]) -> None:
    base, *_ = hostile
    port = urllib.parse.urlsplit(base).port
    assert port
    here = f"127.0.0.1:{port}"
    assert shake(port, here, f"http://{here}") == 101
    assert shake(port, f"evil.example:{port}", f"http://evil.example:{port}") == 421  # a name that points here
    for origin in (None, "http://evil.example", "http://localhost:3000", "http://127.0.0.1", "null"):
        assert shake(port, here, origin) == 403
    for path in ("/", "/runs", "/_stcore/health", "/_stcore/host-config", "/static/x.js", "/media/x", "/artifacts/a/b"):
        for host, wanted in (("evil.example", {421}), (here, {200, 404})):
            line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            line.request("GET", path, headers={"Host": host})
            answer = line.getresponse()
            body = answer.read()
            assert answer.status in wanted, path
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
            assert b"Traceback" not in body
            line.close()
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    line.request("GET", "/_stcore/metrics", headers={"Host": here, "X-Forwarded-For": "10.0.0.9"})
    assert line.getresponse().status == 403
    line.close()


ALWAYS = {name.lower(): value for name, value in middleware.ALWAYS.items()}


def said_to(port: int, content: bytes) -> tuple[int, dict[str, str], bytes]:
    """What the server answers to these bytes: status, headers by lower-case name, body."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(content)
        answer = http.client.HTTPResponse(line)
        answer.begin()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


HANDSHAKE = "GET /_stcore/stream HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{more}\r\n"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"


@pytest.mark.slow
def test_every_answer_has_the_headers_also_those_that_the_server_makes_itself(tmp_path: Path) -> None:
    with dashboard(tmp_path / "log.txt", environment={"SMALLALIGN_STORE": str(tmp_path / "models")}) as base:
        port = int(base.rpartition(":")[2])
        host = f"127.0.0.1:{port}"
        cases = {
            b"nonsense\r\n\r\n": 400,
            b"GET / HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n": 400,
            b"GET / HTTP/1.1\r\n\r\n": 400,
            b"GET /" + b"x" * 70_000: 400,
            HANDSHAKE.format(host=host, more=KEY).encode(): 403,  # no origin
            HANDSHAKE.format(host=host, more=KEY + "Origin: http://evil.example\r\n").encode(): 403,
            HANDSHAKE.format(host="evil.example", more=KEY + "Origin: http://evil.example\r\n").encode(): 421,
            HANDSHAKE.format(host=host, more="Sec-WebSocket-Version: 13\r\n").encode(): 400,
            HANDSHAKE.format(host=host, more=KEY.replace("13", "7")).encode(): 400,
        }
        for content, wanted in cases.items():
            status, headers, body = said_to(port, content)
            assert status == wanted, content[:80]
            assert ALWAYS.items() <= headers.items(), (content[:80], headers)
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert b"Traceback" not in body
        log = (tmp_path / "log.txt").read_text()
        assert "Traceback" not in log


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of uvicorn with one route, whose requests have a second to arrive."""
    import uvicorn

    changed = [
        (kind, name)
        for kind in (_compat_uvicorn.H11Protocol, _compat_uvicorn.WebSocketsSansIOProtocol)
        for name in ("__init__", "connection_made", "data_received", "connection_lost")
    ]
    before = {(kind, name): getattr(kind, name) for kind, name in changed}
    before[_compat_uvicorn.H11Protocol, "send_400_response"] = _compat_uvicorn.H11Protocol.send_400_response
    _compat_uvicorn.guard(middleware.ALWAYS, seconds=1.0)

    async def slow(_: Request) -> Response:
        await asyncio.sleep(3)
        return PlainTextResponse("answered")

    app = Starlette(routes=[Route("/", lambda _: PlainTextResponse("page")), Route("/slow", slow)])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=free_port(), log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.config.port
    server.should_exit = True
    thread.join(60)
    for (kind, name), value in before.items():
        setattr(kind, name, value)


@pytest.mark.slow
def test_a_request_that_trickles_in_is_ended(hurried: int) -> None:
    def ended(*parts: bytes) -> bytes:
        """What comes back when these parts were sent, and then a byte now and then until the server hangs up."""
        with socket.create_connection(("127.0.0.1", hurried), timeout=60) as line:
            for part in parts:
                line.sendall(part)
            line.settimeout(0.2)
            got, until = b"", time.monotonic() + 60
            while time.monotonic() < until:
                with contextlib.suppress(TimeoutError):
                    try:
                        some = line.recv(65_536)
                    except ConnectionResetError:
                        return got
                    if not some:
                        return got
                    got += some
                if parts:
                    with contextlib.suppress(OSError):
                        line.sendall(b"x")
            pytest.fail("it was never ended")

    late = ended(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert late.startswith(b"HTTP/1.1 408 ")
    assert b"took too long" in late
    for name, value in middleware.ALWAYS.items():
        assert f"{name}: {value}".encode() in late
    assert ended() == b"", "a connection that a browser opened ahead gets no answer"
    kept = ended(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/1.1\r\nX-Slow: ")
    assert kept.startswith(b"HTTP/1.1 200 ")
    assert ended(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    assert said_to(hurried, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")[2] == b"answered", "answers may take long"


@pytest.mark.parametrize("proof", ["[]", "{}", '{"run": 5}', "[" * 100_000])
def test_a_damaged_proof_gives_no_demo_and_no_error(proof: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))
    folder = store.root / "exports" / "ab"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"x")
    (folder / "parity.json").write_text(proof)
    assert context.exported("ab", "demo.zip") is None


def test_a_full_disk_gives_no_demo_and_no_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise Refused("the disk is full")

    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))
    monkeypatch.setattr(context.browser, "demo_zip", lambda *_: b"x")
    monkeypatch.setattr(context, "write", full)
    folder = store.root / "exports" / "ab"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"x")
    (folder / "parity.json").write_text('{"run": "ab"}')
    assert context.exported("ab", "demo.zip") is None


@pytest.mark.slow
def test_a_viewer_takes_no_run_into_the_store(store: Store, train: Train, tmp_path: Path) -> None:
    run = train()
    elsewhere = tmp_path / "elsewhere" / run.id
    shutil.copytree(run.folder, elsewhere)
    other = Store(tmp_path / "other", VIEWER)
    with pytest.raises(Refused, match="not take runs into the store"):
        _take.run(other.run(str(elsewhere)), other)
    assert not other.root.exists()
