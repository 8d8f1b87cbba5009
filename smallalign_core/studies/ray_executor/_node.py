"""The cluster side: trains runs in a local store, and sends their folders back."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smallalign_core.errors import Refused, SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.runs.writer import capture_logs
from smallalign_core.studies.ray_executor._payload import (
    Dependency,
    Payload,
    RunOutcome,
    code,
    install,
    outcome,
    refusal,
    unpacked,
)
from smallalign_core.system.extras import PACKAGE

if TYPE_CHECKING:
    from collections.abc import Sequence


def place(home: str) -> Path:
    """The folder of this machine for the runs of another one; keeps decoded images and teacher logits.

    Raises:
        Refused: it has another owner, who could modify the runs.
    """
    ours = Path(tempfile.gettempdir()) / f"smallalign-cluster-{os.getuid()}"
    ours.mkdir(mode=0o700, exist_ok=True)
    if ours.is_symlink() or ours.stat().st_uid != os.getuid():
        raise Refused("the folder for cluster runs has another owner", given=ours, do="remove it")
    return ours / home


def train(given: Payload, needed: Sequence[Any]) -> list[RunOutcome]:
    """Train runs in lockstep to their ends.

    Args:
        needed: references to `Dependency` objects, which stay on this machine once fetched.
    """
    import ray
    import torch

    from smallalign_core import data
    from smallalign_core.system.machine import keep_freed_memory
    from smallalign_core.training.runner import run_lockstep

    keep_freed_memory()
    host = socket.gethostname()
    try:
        store = Store(place(given.home))
        if torch.__version__ != given.torch:
            raise Refused(
                "this machine has another version of torch, which would give different weights",
                given=f"{torch.__version__} on {host}, {given.torch} for the study",
                do="install the same requirements.txt on all machines",
            )
        if code() != given.code:
            raise Refused(
                "this machine has another version of SmallAlign, which shadows the one that was sent",
                given=str(PACKAGE),
                do="update it, or start ray there from another folder",
            )
        loaded: list[Dependency] = ray.get(list(needed)) if needed else []  # ray.get would start a local cluster
        for one in loaded:
            install(one, store)
        specs = unpacked(given, store)
        data.load(specs[0].data, store.data_cache)
        runs = [store.create(spec) for spec in specs]
    except SmallAlignError as error:
        return [refusal(host, error, unfit=True) for _ in given.specs]
    logging.getLogger("smallalign").setLevel(logging.INFO)
    with capture_logs(runs):
        ended = run_lockstep(runs, store, device=given.device)
    replies = [outcome(run, how, host) for run, how in zip(runs, ended, strict=True)]
    for run in runs:  # their copies are on the sender
        shutil.rmtree(run.folder, ignore_errors=True)
    return replies
