"""The charts of a report: confusion matrices, reliability, recall, robustness and the Pareto plots."""

from __future__ import annotations

import html
from collections.abc import Sequence

from smallalign_core.analysis.compare import Calibration, RecallChange
from smallalign_core.analysis.html_report._svg import Axes, drawing, line, text
from smallalign_core.analysis.pareto import Candidate, ParetoFront
from smallalign_core.analysis.robustness import Robustness

READABLE = 20
"""Max. classes for drawing a matrix; beyond, the largest errors are listed."""
TITLE_AT = 130
"""Horizontal centre of a small chart."""


def _short(name: str, most: int = 12) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def confusion(table: Sequence[Sequence[int]], classes: Sequence[str], highest: int, who: str) -> str:
    """A confusion matrix with errors coloured up to `highest`; for many classes, a list of the largest errors."""
    if len(classes) > READABLE:
        return _largest(table, classes)
    cell, top = 30, 12
    longest = min(12, max(map(len, classes)))
    left = 24 + 7 * longest
    parts = []
    for true, row in enumerate(table):
        y = top + true * cell
        parts.append(text(left - 8, y + 19, _short(classes[true]), "tick", "end"))
        for said, count in enumerate(row):
            x = left + said * cell
            right = true == said
            strength = 0 if right or not count else 0.15 + 0.85 * count / max(1, highest)
            shade = "hit" if right else "miss"
            parts.append(
                f'<rect class="cell" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}"/>'
                f'<rect class="{shade}" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{strength if not right else 0.12:.2f}"/>'
            )
            if count:
                bold = "count strong" if strength > 0.6 else "count"
                parts.append(text(x + (cell - 1) / 2, y + 19, str(count), bold, "middle"))
    bottom = top + len(classes) * cell
    for said, name in enumerate(classes):
        middle = left + said * cell + cell / 2
        parts.append(
            f'<text class="tick" text-anchor="end" transform="translate({middle + 4:.1f} {bottom + 8}) rotate(-60)">'
            f"{html.escape(_short(name))}</text>"
        )
    width = left + len(classes) * cell + 12
    return drawing(
        width,
        bottom + 20 + 6 * longest,
        parts,
        f"Confusion matrix of the {who}: rows are true classes, columns predicted classes.",
    )


def _largest(table: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    mistakes = sorted(
        ((count, t, s) for t, row in enumerate(table) for s, count in enumerate(row) if t != s and count), reverse=True
    )
    rows = "".join(
        f"<tr><td>{html.escape(classes[true])}</td><td>{html.escape(classes[said])}</td><td>{count:,}</td></tr>"
        for count, true, said in mistakes[:20]
    )
    head = "<tr><th>true class</th><th>predicted class</th><th>images</th></tr>"
    return f"<table>{head}{rows}</table>" if rows else "<p>No errors.</p>"


def reliability(found: Calibration, who: str) -> str:
    """Accuracy over confidence, uncalibrated and temperature-scaled, with 95% intervals."""
    axes = Axes(360, 300, (0, 1), (0, 1))
    parts = [*axes.frame("confidence", "accuracy"), axes.curve([(0, 0), (1, 1)], "ideal")]
    for bins, look in ((found.before, "faint"), (found.after, "r0" if who == "teacher" else "r1")):
        most = max(one.images for one in bins)
        for one in bins:
            x, y = one.confidence, one.accuracy
            about = f"{one.images:,} images: confidence {x:.1%}, accuracy {y:.1%}"
            parts.append(axes.curve([(x, one.accuracy_low), (x, one.accuracy_high)], f"{look} bar"))
            parts.append(axes.dot(x, y, f"{look} dot", about, 2 + 6 * (one.images / most) ** 0.5))
    return drawing(360, 300, parts, f"Reliability of the {who}, uncalibrated (grey) and temperature-scaled (colour).")


def recall(changes: Sequence[RecallChange]) -> str:
    """The student's recall minus the teacher's, one row per class, with 95% intervals."""
    worst = max((max(abs(one.low), abs(one.high)) for one in changes), default=0.1) * 1.05
    left, width, step = 130, 560, 22
    scale = (width - left - 70) / (2 * worst)
    middle = left + worst * scale
    bottom = 8 + len(changes) * step
    parts = [line([(middle, 4), (middle, bottom)], "axis")]
    for place, one in enumerate(changes):
        y = 8 + place * step + step / 2
        sure = "bad" if one.high < 0 else "good" if one.low > 0 else "neutral"
        parts.append(text(left - 10, y + 4, _short(one.name, 18), "tick", "end"))
        parts.append(line([(middle + one.low * scale, y), (middle + one.high * scale, y)], f"{sure} thick"))
        parts.append(f'<circle class="{sure} dot" cx="{middle + one.change * scale:.1f}" cy="{y}" r="4"/>')
        parts.append(text(width - 4, y + 4, f"{100 * one.change:+.1f}", "tick", "end"))
    parts.append(text(left, bottom + 18, "← lower recall", "name"))
    parts.append(text(width - 70, bottom + 18, "higher recall →", "name", "end"))
    return drawing(width, bottom + 26, parts, "Per-class recall change: student minus teacher, in points.")


def curves(found: Robustness) -> str:
    """Mean accuracy over severity for all runs, with 95% bars, and one small chart per corruption."""
    lows = [estimate.low for run in found.runs for estimate in run.by_severity]
    axes = Axes(520, 300, (0, 5.15), (max(0.0, min(lows) - 0.05), 1.0))
    parts = axes.frame("severity (0: clean)", "accuracy")
    for place, run in enumerate(found.runs):
        look = f"r{place % 8}"
        points = list(enumerate([run.clean, *run.by_severity]))
        aside = 0.03 * (place - (len(found.runs) - 1) / 2)
        for at, one in points:
            parts.append(axes.curve([(max(0, at + aside), one.low), (max(0, at + aside), one.high)], f"{look} bar"))
        parts.append(axes.curve([(max(0, at + aside), one.value) for at, one in points], look))
    whole = drawing(520, 300, parts, "Mean accuracy under corruption, over severity.")
    return whole + '<div class="small">' + "".join(_corruption(found, name) for name in found.corruptions) + "</div>"


def _corruption(found: Robustness, name: str) -> str:
    axes = Axes(210, 150, (0, 5), (0, 1))
    parts = axes.frame("", "")
    for place, run in enumerate(found.runs):
        levels = [run.clean, *(one.accuracy for one in run.levels if one.corruption == name)]
        parts.append(axes.curve([(at, one.value) for at, one in enumerate(levels)], f"r{place % 8}"))
    parts.append(text(TITLE_AT, 146, name, "name", "middle"))
    return drawing(210, 150, parts, f"Accuracy under {name}, over severity.")


def pareto(found: ParetoFront, field: str, name: str) -> str:
    """Accuracy over a cost, one point per run; dominated ones are grey, limits are lines."""
    runs, limits = found.candidates, found.limits
    limit = limits.kb if field == "bytes" else limits.ms
    costs = [_cost(one, field) for one in runs] + ([limit] if limit else [])
    low = min([one.accuracy_low for one in runs] + ([limits.accuracy] if limits.accuracy else []))
    axes = Axes(460, 300, (min(costs) / 1.6, max(costs) * 1.6), (max(0.0, low - 0.02), 1.0), log=True)
    parts = axes.frame(name, "accuracy")
    if limit:
        parts.append(axes.curve([(limit, axes.y[0]), (limit, axes.y[1])], "limit"))
    if limits.accuracy:
        parts.append(axes.curve([(axes.x[0], limits.accuracy), (axes.x[1], limits.accuracy)], "limit"))
    for place, one in enumerate(runs):
        look = "faint" if one.dominated_by else f"r{place % 8}"
        x = _cost(one, field)
        parts.append(axes.curve([(x, one.accuracy_low), (x, one.accuracy_high)], f"{look} bar"))
        parts.append(axes.dot(x, one.accuracy, f"{look} dot", f"{one.name}: {one.accuracy:.2%}", 5))
        left, top = axes.at(x, one.accuracy)
        parts.append(text(left + 8, top + 4, str(place + 1), "tick"))
    return drawing(460, 300, parts, f"Accuracy over {name}; runs are numbered as in the table.")


def _cost(one: Candidate, field: str) -> float:
    return float(one.bytes) / 1000 if field == "bytes" else float(one.p50_ms)
