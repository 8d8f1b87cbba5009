"""What keeps libraries from reporting to their makers: no request to any host that the user has not named.

They read it when they are imported or first used, so the package sets it before anything else of it is imported.
"""

from __future__ import annotations

import os

SILENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later: model and graph names, a device id, the program's path
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    "DO_NOT_TRACK": "1",
}

os.environ.update(SILENT)
