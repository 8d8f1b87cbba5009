"""The webhook: what a receiver gets when runs end, and that none of its faults reaches a run or a log."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from smallalign_core.runs.store import Run, State, Store
from smallalign_core.service import webhook, worker
from smallalign_core.service.webhook import TRIES, VARIABLE, Webhook
from smallalign_core.training.resolve import resolve
from tests import processes
from tests.conftest import tiny


class Receiver:
    """A server on the loopback interface; it answers with `statuses` in turn, the last one again and again."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.got: list[tuple[str, str | None, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, self.headers["Content-Type"], json.loads(body)))
                status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.got.append((self.path, None, "GET"))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=s3cret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    made = Receiver(*getattr(request, "param", (200,)))
    yield made
    made.server.shutdown()
    made.server.server_close()


def send(store: Store, url: str) -> None:
    """Send the end of a finished run, and wait until it was sent or given up."""
    with Webhook(url, timeout=0.2, pause=0.01) as hook:
        hook.ended(store.run("digits-student"))
        for thread in threading.enumerate():
            if thread.name.startswith("webhook "):
                thread.join()


def test_a_worker_posts_how_each_run_ended(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(VARIABLE, receiver.url)
    named = store.submit(resolve(store, tiny(epochs=1)))
    store.annotate([named.id], name="first try")
    diverges = store.submit(
        resolve(
            store,
            tiny(optimizer={"kind": "sgd", "lr": 100.0, "weight_decay": 10.0}, network={"kind": "mlp"}, epochs=40),
        )
    )
    assert worker.serve(store, device="cpu", once=True) == 2
    assert (named.state, diverges.state) == (State.FINISHED, State.FAILED)
    bodies = {body["id"]: body for _, _, body in receiver.got}
    assert len(receiver.got) == 2
    assert {(path, kind) for path, kind, _ in receiver.got} == {("/hook?token=s3cret", "application/json")}
    accuracy = (named.result or {})["test"]["accuracy"]
    assert bodies[named.id] == {"id": named.id, "name": "first try", "state": "finished", "accuracy": accuracy}
    assert bodies[diverges.id] == {"id": diverges.id, "name": diverges.title, "state": "failed", "accuracy": None}
    assert "s3cret" not in caplog.text


def test_a_run_that_another_worker_took_first_is_not_counted_or_announced(
    store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, receiver.url)
    run, serve_some = store.submit(resolve(store, tiny(epochs=1))), worker.serve_some

    def late(runs: list[Run], *rest: Any) -> None:
        own = "from smallalign_core.runs.store import Store; from smallalign_core.service import worker; "
        other = f"{own}raise SystemExit(worker.serve(Store({str(store.root)!r}), device='cpu:0', once=True) - 1)"
        done = processes.run(processes.python("-c", other), timeout=300)
        assert done.returncode == 0, done.stderr
        serve_some(runs, *rest)

    monkeypatch.setattr(worker, "serve_some", late)
    assert worker.serve(store, device="cpu", once=True) == 0
    assert run.state is State.FINISHED
    assert [body["id"] for _, _, body in receiver.got] == [run.id], "announced once, by the other"


@pytest.mark.parametrize("receiver", [(500, 503, 200)], indirect=True)
def test_it_is_tried_again_twice(store: Store, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    send(store, receiver.url)
    assert [body["id"] for _, _, body in receiver.got] == [store.run("digits-student").id] * TRIES
    assert caplog.text == ""


@pytest.mark.parametrize("receiver", [(302,)], indirect=True)
def test_a_redirect_is_not_followed(store: Store, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    send(store, receiver.url)
    assert {path for path, _, _ in receiver.got} == {"/hook?token=s3cret"}
    assert "after 3 tries: HTTP status 302" in caplog.text


def test_a_dead_receiver_fails_no_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.socket() as taken:  # bound, but nothing listens: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{taken.getsockname()[1]}/s3cret")
        monkeypatch.setattr(webhook, "PAUSE_SECONDS", 0.01)
        run = store.submit(resolve(store, tiny(epochs=1)))
        assert worker.serve(store, device="cpu", once=True) == 1
    assert run.state is State.FINISHED
    assert f"did not accept the message about {run.id} after 3 tries: ConnectionRefusedError" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_receiver_that_never_answers_is_given_up(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        send(store, f"http://127.0.0.1:{silent.getsockname()[1]}/s3cret")
    assert "after 3 tries: TimeoutError" in caplog.text
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/s3cret", "s3cret", "http://", "http://a:s3cret/", "https://[s3cret"])
def test_an_unusable_url_is_reported_once_without_it(store: Store, url: str, caplog: pytest.LogCaptureFixture) -> None:
    with webhook.configured({VARIABLE: url}) as hook:
        hook.ended(store.run("digits-student"))
    assert caplog.text.count("is not an http or https URL") == 1
    assert "s3cret" not in caplog.text


def test_nothing_is_sent_of_a_run_that_was_queued_again(store: Store, receiver: Receiver) -> None:
    with Webhook(receiver.url) as hook:
        hook.ended(store.submit(resolve(store, tiny(epochs=1))))
    with webhook.configured({}) as hook:
        hook.ended(store.run("digits-student"))
    assert receiver.got == []
