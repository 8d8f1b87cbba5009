"""A POST to the user's own address when a run ends: `SMALLALIGN_WEBHOOK`."""

from __future__ import annotations

import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from smallalign_core.errors import SmallAlignError
from smallalign_core.runs.store import Run

log = logging.getLogger("smallalign")

VARIABLE = "SMALLALIGN_WEBHOOK"
TRIES = 3
TIMEOUT_SECONDS = 5.0
PAUSE_SECONDS = 1.0
"""Before the second try; the pause before the third is twice as long."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:  # a POST would become a GET at an address that nobody configured
        return None


class Webhook:
    """Sends how runs ended, in threads: training does not wait, and no failure of the receiver reaches a run.

    The URL is often a secret and is never logged.
    """

    def __init__(self, url: str, *, timeout: float = TIMEOUT_SECONDS, pause: float = PAUSE_SECONDS) -> None:
        """
        Args:
            url: http or https; empty: nothing is sent.
            timeout: of one try, seconds.
            pause: before the second try, seconds.
        """
        self.timeout, self.pause = timeout, pause
        self._url = url
        self._sending: list[threading.Thread] = []

    def ended(self, run: Run) -> None:
        """Send the state of `run`, unless it is queued or running."""
        try:
            if not self._url or run.state.active:
                return
            message = message_of(run)
        except (SmallAlignError, OSError) as error:
            log.warning("no message to the webhook about %s: %s", run.name, error)
            return
        thread = threading.Thread(target=self._send, args=(message,), name=f"webhook {run.name}", daemon=True)
        thread.start()
        self._sending = [*(one for one in self._sending if one.is_alive()), thread]

    def __enter__(self) -> Webhook:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def wait(self) -> None:
        """Wait for messages under way, somewhat longer at most than the tries of one take."""
        until = time.monotonic() + (TRIES + 1) * (self.timeout + self.pause)
        for thread in self._sending:
            thread.join(max(0.0, until - time.monotonic()))

    def _send(self, message: dict[str, Any]) -> None:
        failure = ""
        for number in range(TRIES):
            time.sleep(number * self.pause)
            try:
                request = urllib.request.Request(
                    self._url,
                    json.dumps(message).encode(),
                    {"Content-Type": "application/json", "User-Agent": "SmallAlign"},
                )
                with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout):
                    return
            except urllib.error.HTTPError as error:
                failure = f"HTTP status {error.code}"
                error.close()
            except (OSError, ValueError, http.client.HTTPException) as error:  # texts of some hold the URL
                failure = type(getattr(error, "reason", None) or error).__name__
        log.warning("the webhook did not accept the message about %s after %d tries: %s", message["id"], TRIES, failure)


def configured(environment: Mapping[str, str] | None = None) -> Webhook:
    """The webhook of `SMALLALIGN_WEBHOOK`; nothing is sent if unset. An unusable URL is logged, without the URL."""
    url = (os.environ if environment is None else environment).get(VARIABLE, "").strip()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if url and not usable:
        log.warning("%s is not an http or https URL: no messages are sent", VARIABLE)
    return Webhook(url if usable else "", pause=PAUSE_SECONDS)


def message_of(run: Run) -> dict[str, Any]:
    """The message about a run: `id`, `name` (the user's, or else the title), `state`, and `accuracy` on test, 0 to 1;
    null if it has none.
    """
    test = (run.result or {}).get("test") or {}
    return {
        "id": run.id,
        "name": run.notes.name or run.title,
        "state": str(run.state),
        "accuracy": test.get("accuracy"),
    }
