"""The backend: processes that answer the dashboard's requests, so that the dashboard's own never imports torch.

`serve` is the loop of such a process; `service.client.BackendClient` is the other end.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from typing import Any, TextIO

from smallalign_core.errors import BadInput, SmallAlignError, WorkFailed, of_system
from smallalign_core.runs.store import Store
from smallalign_core.service.handlers import HANDLERS
from smallalign_core.service.users import Role, User
from smallalign_core.system import limits, resumable, typed, usercode

VERBS = {request.verb(): request for request in HANDLERS}


def serve(store: Store, questions: TextIO, answers: TextIO) -> None:
    """Answer one JSON question a line until the pipe closes.

    With the answer to a question that came with `patience` goes whether it is `unfinished`: then this process holds
    what was done so far, and the question should come back here.
    """
    limits.require_allowed(store.root)
    for line in questions:
        message = json.loads(line)
        acting = Store(store.root, User(message["user"], Role(message["role"])), showing=True)
        with resumable.on_behalf_of(acting.user.name) as asking:
            try:
                reply: dict[str, Any] = {"ok": _answered(acting, message["verb"], message["values"])}
            except SmallAlignError as error:
                reply = {"error": str(error), "bad_input": isinstance(error, BadInput), "details": error.details}
            except Exception as error:  # noqa: BLE001  # whatever one request does, the backend answers the next
                failed = (
                    usercode.explanation(error)
                    or of_system(error)
                    or WorkFailed(
                        "the question could not be answered", given=repr(error), do="try again, or see backend.log"
                    )
                )
                reply = {"error": str(failed), "bad_input": isinstance(failed, BadInput)}
        answers.write(typed.encode(reply | ({"unfinished": True} if asking.put_aside else {})) + "\n")
        answers.flush()


def _answered(store: Store, verb: str, values: object) -> Any:
    """The answer of a request's handler.

    Raises:
        BadInput: there is no such request, or it has other fields.
    """
    do = "restart the dashboard: its processes are of different versions"
    kind = VERBS.get(verb)
    if kind is None:
        raise BadInput("there is no such request", given=verb, do=do)
    return HANDLERS[kind](store, typed.decode(kind, values, BadInput, f"the request {verb} cannot be read", do))


def libraries() -> list[Callable[[], object]]:
    """Imports that a question may need; the first must be there before any is answered."""

    def first() -> None:
        from smallalign_core.runs import imported  # noqa: F401

    # ONNX Runtime is not among them: it has threads of its own, which a fork would lose.
    later = ("sklearn.datasets", "sklearn.linear_model", "torchvision", "onnx", "torch.onnx", "torch._dynamo")
    return [first, *(functools.partial(importlib.import_module, name) for name in later)]
