"""The process that converts: limits its memory, converts one file of ours, and replies with one line of JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from smallalign_core.errors import SmallAlignError
from smallalign_core.export.targets._process import module_of
from smallalign_core.spec.target import TARGETS
from smallalign_core.system.sandbox import _seccomp


def main() -> None:
    """Reply to the request in the first argument: {} after success, otherwise `refused`."""
    call = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # library output must not mix with the reply
    target = TARGETS[call["target"]]
    reply: dict[str, object] = {}
    _seccomp.limit_memory(call["memory"])
    try:
        module_of(target).convert(Path(call["source"]), Path(call["to"]))
    except SmallAlignError as error:
        reply = {"refused": [error.wrong, error.given, error.do]}
    except MemoryError:
        reply = {"refused": ["the conversion needs more memory than allowed", target.title, "export ONNX"]}
    except Exception as error:  # noqa: BLE001  # converters fail in any way; the caller gets a sentence
        words = " ".join(str(error).split())[:200] or type(error).__name__
        reply = {"refused": [f"the network cannot be converted to {target.title}", words, "export ONNX"]}
    out.write(json.dumps(reply) + "\n")
    out.flush()
    os._exit(0)  # library cleanup under a memory limit may hang or crash


if __name__ == "__main__":
    main()
