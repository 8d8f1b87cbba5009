"""Small charts as SVG text. No plotting library, since charts follow the light or dark theme by CSS classes, need no
script, and take a few kB."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

LEFT, RIGHT, TOP, BOTTOM = 62, 12, 10, 40


def text(x: float, y: float, content: str, look: str = "", anchor: str = "start") -> str:
    """A text element; the content is escaped."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{look}" text-anchor="{anchor}">{html.escape(content)}</text>'


def line(points: Sequence[tuple[float, float]], look: str) -> str:
    """A line through points."""
    return f'<polyline class="{look}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def drawing(width: int, height: int, parts: Sequence[str], about: str) -> str:
    """The parts as one scalable image; `about` is its accessible label."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(about, quote=True)}" '
        f'width="{width}" height="{height}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Axes:
    """Axes of a chart.

    Args:
        x, y: the first and last value of each axis. `log`: whether x is logarithmic; both are above 0 then.
    """

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The position of a value, in image units."""
        low, high = self.x
        across = math.log(x / low) / math.log(high / low) if self.log else (x - low) / (high - low)
        down = (y - self.y[0]) / (self.y[1] - self.y[0])
        inside = self.width - LEFT - RIGHT, self.height - TOP - BOTTOM
        return LEFT + across * inside[0], self.height - BOTTOM - down * inside[1]

    def frame(self, x_name: str, y_name: str, *, percent: bool = True) -> list[str]:
        """Grid, ticks and names."""
        parts = []
        for value in ticks(*self.y):
            left, right = self.at(self.x[0], value), self.at(self.x[1], value)
            parts += [line([left, right], "grid")]
            parts += [text(LEFT - 6, left[1] + 4, f"{value:.4g}" if not percent else _share(value), "tick", "end")]
        for value in log_ticks(*self.x) if self.log else ticks(*self.x):
            low = self.at(value, self.y[0])
            parts += [line([low, self.at(value, self.y[1])], "grid")]
            parts += [text(low[0], low[1] + 15, f"{value:g}", "tick", "middle")]
        middle = LEFT + (self.width - LEFT - RIGHT) / 2
        parts.append(text(middle, self.height - 6, x_name, "name", "middle"))
        parts.append(
            f'<text class="name" text-anchor="middle" transform="translate(11 {(self.height - BOTTOM + TOP) / 2:.1f}) '
            f'rotate(-90)">{html.escape(y_name)}</text>'
        )
        return parts

    def dot(self, x: float, y: float, look: str, about: str = "", radius: float = 3.5) -> str:
        """A point with the tooltip `about`."""
        left, top = self.at(x, y)
        title = f"<title>{html.escape(about)}</title>" if about else ""
        return f'<circle class="{look}" cx="{left:.1f}" cy="{top:.1f}" r="{radius}">{title}</circle>'

    def curve(self, points: Sequence[tuple[float, float]], look: str) -> str:
        """A line through values."""
        return line([self.at(x, y) for x, y in points], look)


def _share(value: float) -> str:
    return f"{100 * value:.4g}%"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values between `low` and `high`, about `wanted` of them."""
    raw = (high - low) / wanted
    size = 10 ** math.floor(math.log10(raw))
    step = next(times * size for times in (1, 2, 2.5, 5, 10) if times * size >= raw * 0.9)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 10) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two values, with their doubles and fivefolds where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    many = [times * 10.0**power for power in powers for times in (1, 2, 5)]
    inside = [value for value in many if low <= value <= high]
    tens = [value for value in inside if math.isclose(10 ** round(math.log10(value)), value)]
    return tens if len(tens) >= 3 else inside
