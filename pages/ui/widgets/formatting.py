"""Numbers and states in words, the same on every page."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Literal

from smallalign_core.errors import printable

Colour = Literal["red", "orange", "yellow", "blue", "green", "violet", "gray"]

STATES: dict[str, tuple[Colour, str]] = {
    "queued": ("gray", ":material/schedule:"),
    "running": ("blue", ":material/play_circle:"),
    "paused": ("orange", ":material/pause_circle:"),
    "interrupted": ("orange", ":material/power_off:"),
    "failed": ("red", ":material/error:"),
    "cancelled": ("gray", ":material/cancel:"),
    "finished": ("green", ":material/check_circle:"),
    "damaged": ("red", ":material/broken_image:"),
}
"""Color and icon of each state of a run; `damaged` is for folders that cannot be read."""


LINK = re.compile(
    r"(?:https?://|ftp://|www\.|mailto:)\S+?(?=[).,;:'\"]*(?:\s|$))|\b[\w.+-]+@[\w-]+\.\w[\w-]*", re.IGNORECASE
)
MARKUP = re.compile(
    r"\](?=[(\[])|[$<~]|(?<!\w)[*_]+(?=\w)|(?<=\w)[*_]+(?!\w)|:(?=[a-z_]+[\[/:])|^[#>+-](?= )", re.IGNORECASE
)
"""What would be markup in a sentence: links, mathematics, tags, emphasis, Streamlit's directives, lists."""


def plain(text: str) -> str:
    """A text with names of files, classes or addresses in it, as Markdown that shows it and does nothing else.

    Code between backticks stays; links, directives and emphasis that stand in names do not become any. An address is
    shown as code: Markdown makes a link of every bare one, however it is escaped.
    """
    text = printable(" ".join(text.split()))
    if "``" in text or text.count("`") % 2:
        text = text.replace("`", "'")
    parts = re.split("(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    """Outside code."""
    found, at = "", 0
    for link in LINK.finditer(text):
        found += _literal(text[at : link.start()]) + f"`{link[0]}`"
        at = link.end()
    return found + _literal(text[at:])


def _literal(text: str) -> str:
    return MARKUP.sub(lambda one: "".join(f"\\{sign}" for sign in one[0]), text)


def given(key: str, value: str) -> str:
    """A URL parameter, as a message may show it."""
    return plain(f"{key}={value[:80]}" if key else value[:80])


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash for none."""
    return "–" if share is None else f"{share:.{digits}%}"


def interval(low: float | None, high: float | None) -> str:
    """A 95% confidence interval of a share."""
    return "" if low is None or high is None else f"{low:.1%} to {high:.1%}"


def count(number: float | None) -> str:
    """A count in at most four characters and a unit: 1,234 or 56.7 k or 8.9 M."""
    if number is None:
        return "–"
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= limit:
            return f"{number / (1e3 if unit == ' k' else limit):.3g}{unit}"
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in a readable unit (1 kB is 1,000 bytes)."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:.0f} bytes"


def exact(number: int | None) -> str:
    """Bytes in kB of 1,000 bytes, to the byte."""
    return "–" if number is None else f"{number / 1000:,.3f} kB"


def sizes(found: Mapping[str, int | None]) -> str:
    """The exact size of an export in each precision."""
    listed = "; ".join(f"{name} {exact(size)}" for name, size in found.items())
    later = "" if "int8" in found else " int8 needs calibration of this large network: see Export."
    return f"Exported file size: {listed}. 1 kB is 1,000 bytes.{later}"


def duration(seconds: float | None) -> str:
    """Seconds in a readable unit."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def ago(when: float, now: float | None = None) -> str:
    """How long ago a Unix time was."""
    past = (time.time() if now is None else now) - when
    return "just now" if past < 5 else f"{duration(past)} ago" if past < 172_800 else f"{past / 86_400:.0f} days ago"
