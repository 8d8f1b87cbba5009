"""Environment variables that disable the telemetry of libraries: no requests to hosts that the user has not named.

Libraries read them at import or first use, so the package sets them before it imports anything else.
"""

from __future__ import annotations

import os

SILENT = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later: model and graph names, a device id, the program's path
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "STREAMLIT_BROWSER_GATHER_USAGE_STATS": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}

os.environ.update(SILENT)
