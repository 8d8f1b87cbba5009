"""Exports for other runtimes than ONNX Runtime, one module each, with the same proof as for ONNX.

Each module has `convert(source, to)`, `packed(files)` and `opener()`. Conversion is in a process of its own with
limited memory and time; files are run in the sandbox, as users' models are.
"""

from smallalign_core.export.targets._export import (
    GATE as GATE,
    bundle_target as bundle_target,
    check_beside as check_beside,
    export_target as export_target,
    kept_target as kept_target,
    passed as passed,
    read_files as read_files,
)
from smallalign_core.export.targets._process import TargetClassifier as TargetClassifier
from smallalign_core.export.targets._trailer import read_trailer as read_trailer, with_trailer as with_trailer
