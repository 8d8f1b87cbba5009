"""Installed packages: the library's own folder, and optional dependencies.

An optional package is imported by `load`; if it is missing, one error names the command that installs it. Extras have
the names in `[project.optional-dependencies]` of pyproject.toml; a test compares the two.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.resources
import importlib.util
import warnings
from pathlib import Path
from typing import Any

from smallalign_core.errors import MissingExtra

PACKAGE = Path(str(importlib.resources.files("smallalign_core"))).resolve()
"""The library's folder. An installed wheel has data below its `_models`; a checkout has them beside it."""

EXTRA_OF = {
    "streamlit": "dashboard",
    "pytorch_optimizer": "optimizers",
    "timm": "timm",
    "evotorch": "evolution",
    "cleanlab": "quality",
    "pyarrow": "huggingface",
    "huggingface_hub": "huggingface",
    "ray": "ray",
    "optuna": "search",
    "torch_pruning": "pruning",
    "openvino": "openvino",
    "executorch": "executorch",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "mcp": "mcp",
}
"""The extra that installs a package, by import name."""


def command(package: str) -> str:
    """The command that installs the extra with `package`."""
    return f'pip install "smallalign[{EXTRA_OF[package]}]"'


def installed(package: str) -> bool:
    """Whether `package` can be imported, without importing it."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec, or None in sys.modules
        return False


def version(package: str) -> str | None:
    """The installed version of `package`; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def require(package: str, what: str) -> None:
    """Check that `package` is installed, for the feature `what`. Nothing is imported, so this is cheap.

    Args:
        package: a key of `EXTRA_OF`.
        what: the feature, as the subject of a sentence: "the optimizer lion".

    Raises:
        MissingExtra: `package` is not installed; the message has the command that installs it.
    """
    if not installed(package):
        raise _missing(package, what, package)


def load(module: str, what: str) -> Any:
    """Import `module`, or a module inside a package of an extra; its warnings at import are not shown.

    Args:
        module: a key of `EXTRA_OF`, or such a key followed by a dot and the rest of the path.
        what: as for `require`.

    Raises:
        MissingExtra: the package, or one that it depends on, is not installed, or is too old to have that module.
    """
    package = module.partition(".")[0]
    require(package, what)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from their own dependencies
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        absent = error.name or package
        if absent.startswith(f"{package}."):
            words = f"{what} needs a newer version of the package {package}"
            newer = command(package).replace("install", "install --upgrade")
            raise MissingExtra(words, given=version(package) or "unknown", do=f"run `{newer}`") from error
        raise _missing(package, what, absent) from error


def _missing(package: str, what: str, absent: str) -> MissingExtra:
    """The error where `absent` is not installed: `package`, or one that it depends on."""
    return MissingExtra(f"{what} needs the package {absent}, which is not installed", do=f"run `{command(package)}`")
