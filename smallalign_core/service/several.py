"""Several devices of one machine: a worker process each, on the same queue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from smallalign_core.errors import BadSpec, WorkFailed
from smallalign_core.runs.store import Store

POLL_SECONDS = 0.3
ALL = "all"


def devices(names: str) -> list[str]:
    """The devices in a comma-separated list; `all`: every GPU of the machine, or the device that `auto` takes.

    Raises:
        BadSpec: one is not available, or is there twice.
    """
    import torch

    from smallalign_core.training.distributed import pick_device

    if names == ALL:
        kind = pick_device().type
        count = getattr(torch, kind).device_count() if kind in ("cuda", "xpu") else 1
        return [f"{kind}:{number}" for number in range(count)] if count > 1 else [kind]
    found = [name for each in names.split(",") if (name := each.strip())]
    for name in found:
        pick_device(name)
    if not found or len(set(found)) < len(found):
        raise BadSpec("each device is named once", given=names, do="give for example --devices cuda:0,cuda:1")
    return found


def serve(
    store: Store,
    names: list[str],
    *,
    once: bool = False,
    while_pid: int | None = None,
    stop: threading.Event,
) -> int:
    """Run a worker for each device until all have ended; once `stop` is set, they checkpoint and end.

    Returns:
        The number of runs taken by all.

    Raises:
        WorkFailed: a worker failed; the others went on.
    """
    command = [sys.executable, "-m", "smallalign_core", "worker", "--json", "--store", str(store.root.resolve())]
    command += [*(("--once",) if once else ()), *(("--while-pid", str(while_pid)) if while_pid else ())]
    root = str(Path(__file__).resolve().parents[2])  # in a checkout too
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    # In sessions of their own: Ctrl-C reaches them as one signal, from here.
    how: dict[str, Any] = {"start_new_session": True, "env": {**os.environ, "PYTHONPATH": path}}
    processes = [subprocess.Popen([*command, "--device", name], stdout=subprocess.PIPE, **how) for name in names]
    while not stop.wait(POLL_SECONDS) and any(process.poll() is None for process in processes):
        pass
    for process in processes:  # a signal to one that has ended does nothing
        process.terminate()
    outputs = [process.communicate()[0] for process in processes]
    if failed := [name for name, process in zip(names, processes, strict=True) if process.returncode]:
        raise WorkFailed("a worker has failed", given=", ".join(failed), do="see its message above")
    return sum(json.loads(output)["taken"] for output in outputs if output.strip())
