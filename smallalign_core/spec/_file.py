"""What stands in a YAML or JSON file that a user names, before anything of it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from smallalign_core.errors import BadSpec


def loaded(path: Path, what: str) -> Any:
    """The plain values in a YAML or JSON file.

    Raises:
        BadSpec: it is missing, no file, too large, no text, or not YAML.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, a pipe, a device that never ends
            raise BadSpec(f"the {what} cannot be read: it is no file", given=path, do="name a YAML or JSON file")
        if path.stat().st_size > 1_000_000:
            raise BadSpec(
                f"a {what} is a short text, this file is over 1 MB", given=path, do="name a YAML or JSON file"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (
            "is not text" if isinstance(error, UnicodeDecodeError) else (error.strerror or "cannot be read").lower()
        )
        raise BadSpec(f"the {what} cannot be read: {reason}", given=path, do="name a YAML or JSON file") from None
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise BadSpec(f"the {what} is nested too deeply", given=path, do="four levels are enough for any") from None
    except yaml.YAMLError as error:
        where = (
            f" in line {error.problem_mark.line + 1}"
            if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark
            else ""
        )
        wrong = f"the {what} is not valid YAML{where}"
        raise BadSpec(wrong, given=path, do="check its indentation and quotes") from None
