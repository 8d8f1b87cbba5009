"""The report as one HTML file: no scripts, no external resources, light and dark themes, printable."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smallalign_core.analysis import compare, pareto, robustness
from smallalign_core.analysis.compare import Comparison
from smallalign_core.analysis.html_report import _charts
from smallalign_core.analysis.html_report._report import Report
from smallalign_core.analysis.pareto import ParetoFront
from smallalign_core.analysis.robustness import Robustness
from smallalign_core.metrics import ENDS, Scores
from smallalign_core.runs.store import looked_at

STYLE = (Path(__file__).parent / "report.css").read_text()
SHOWN = 24
"""Max. images per kind."""
THUMB = 64
"""Their longest side in the file, in pixels."""
METRICS: dict[str, Callable[[Scores], float]] = {
    "NLL": lambda scores: scores.nll,
    "ECE": lambda scores: scores.ece,
    "Brier": lambda scores: scores.brier,
}
LIMITS = {"kb": "file size", "ms": "latency", "accuracy": "accuracy"}
"""Limits of a target device that a run may exceed."""
TITLES = {
    "inherited": "Inherited errors",
    "regressions": "Regressions",
    "fixes": "Fixes",
    "differently": "Both wrong, different predictions",
}


def page(report: Report, images: NDArray[np.uint8] | Any) -> str:
    """The whole file. `images` are those of the split, uint8 [N, C, H, W] or memory-mapped rows of them."""
    names = [run.name for run in report.runs]
    parts = [_head(report, names), _runs(report)]
    parts += [_pair(found, names[0], name) for found, name in zip(report.pairs, names[1:], strict=True)]
    parts += [_bearing(report.robustness, names), _frontier(report.frontier)]
    parts += [_gallery(report.pairs[0], kind, images) for kind in compare.KINDS]
    parts.append(_method(report))
    # Strict: the only style sheet is allowed by digest, images are embedded, and nothing else may load.
    style = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{style}'; img-src data:; base-uri 'none'; form-action 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(" and ".join(names[:2]))} compared</title><style>{STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table; all cells are escaped, the first of a row is its heading."""
    top = "".join(f'<th scope="col">{escape(one)}</th>' for one in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(one)}</td>" for one in row[1:])}</tr>'
        for row in rows
    )
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0"><table>{told}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _head(report: Report, names: Sequence[str]) -> str:
    data = report.data
    split = "test" if report.split == "test" else "validation"
    looks = f" These test images were {looked_at(report.test_looks)}." if report.split == "test" else ""
    others = ", ".join(names[1:])
    return (
        f"<header><h1>Can {escape(others)} replace {escape(names[0])}?</h1>"
        f"<p>{data.images:,} {split} images of {escape(data.source)}, {len(data.classes)} classes. "
        f"Created {escape(report.made)} by SmallAlign.{looks}</p></header>"
    )


def _runs(report: Report) -> str:
    rows = [
        [
            run.name,
            run.title,
            "–" if run.params is None else f"{run.params:,}",
            str(run.weights_sha256)[:16],
        ]
        for run in report.runs
    ]
    return _table(
        ["run", "description", "parameters", "SHA-256 of the weights"], rows, "The runs; the first is the teacher"
    )


def _pair(found: Comparison, teacher: str, student: str) -> str:
    both = [found.teacher, found.student]
    fitted = [found.teacher_calibration, found.student_calibration]
    square = _table(
        ["", "student right", "student wrong"],
        [
            ["teacher right", f"{found.both_right:,}", f"{found.teacher_only:,}"],
            ["teacher wrong", f"{found.student_only:,}", f"{found.both_wrong:,}"],
        ],
        "Correct predictions",
    )
    figures = [
        [
            "accuracy",
            *(f"{one.accuracy:.2%} ({one.accuracy_low:.2%} to {one.accuracy_high:.2%})" for one in both),
        ]
    ]
    for name, field in (("macro recall", "macro_recall"), ("top-5 accuracy", "top5")):
        if getattr(both[0], field) is not None:
            ends = [[getattr(one, f"{field}{end}") for end in ENDS] for one in both]
            figures.append([name, *(f"{middle:.2%} ({low:.2%} to {high:.2%})" for middle, low, high in ends)])
    figures.append(["least recall", *(f"{one.worst_recall:.2%}: {one.worst_class}" for one in both)])
    figures.append(["macro F1", *(f"{one.macro_f1:.2%}" for one in both)])
    for name, value in METRICS.items():
        figures.append([name, *(f"{value(one):.4f}" for one in both)])
    figures.append(["temperature", *(f"{one.temperature:.3f}" for one in fitted)])
    for name, value in METRICS.items():
        figures.append([f"{name}, temperature-scaled", *(f"{value(one.scores):.4f}" for one in fitted)])
    change = f"{100 * found.accuracy_change:+.2f} points (95% interval {100 * found.accuracy_change_low:+.2f} to "
    change += f"{100 * found.accuracy_change_high:+.2f})"
    lines = [
        f"Agreement: {found.agreement:.2%} of the images (95% interval {found.agreement_low:.2%} to "
        f"{found.agreement_high:.2%}); mean KL: {found.kl:.4f}.",
        f"Accuracy, student minus teacher: {change}. {compare.mcnemar(found)}",
        f"Macro recall, student minus teacher: {compare.macro_change(found)}.",
        f"Both make the same error on {found.inherited:,} images.",
    ]
    highest = compare.commonest_mistake(found)
    matrices, diagrams = [], []
    for who, _, calibration in found.sides:
        chart = _charts.confusion(found.confusion(who), found.classes, highest, who)
        matrices.append(f"<figure><figcaption>{who.capitalize()}</figcaption>{chart}</figure>")
        chart = _charts.reliability(calibration, who)
        diagrams.append(f"<figure><figcaption>{who.capitalize()}</figcaption>{chart}</figure>")
    shown = compare.most_changed(found.recall_change)
    few = f"; the {len(shown)} classes that changed most" if len(shown) < len(found.classes) else ""
    return (
        f"<section><h2>{escape(student)} against {escape(teacher)}</h2>"
        f"{''.join(f'<p>{escape(one)}</p>' for one in lines)}"
        f"{square}{_table(['', 'teacher', 'student'], figures, 'Accuracy and calibration')}"
        f"<h3>Per-class recall change</h3><p>Student minus teacher in points, with 95% intervals{few}.</p>"
        f"<figure>{_charts.recall(shown)}</figure>"
        f"<h3>Confusion matrices</h3><p>Rows are true classes, columns predicted classes. Errors are coloured, on one "
        f"scale for both.</p><div class='pair'>{''.join(matrices)}</div>"
        "<h3>Reliability</h3><p>Accuracy over confidence in bins of 1/15, with 95% intervals; larger dots are more "
        "images. Grey: uncalibrated; colour: temperature-scaled on validation.</p>"
        f"<div class='pair'>{''.join(diagrams)}</div></section>"
    )


def _legend(names: Sequence[str]) -> str:
    items = "".join(f'<li><span class="swatch b{i % 8}"></span>{escape(name)}</li>' for i, name in enumerate(names))
    return f'<ul class="legend">{items}</ul>'


def _bearing(found: Robustness | None, names: Sequence[str]) -> str:
    if found is None:
        return ""
    lines = robustness.words(found, names).split("\n")
    told = "".join(f"<li>{escape(one)}</li>" for one in lines[1:])
    return (
        f"<section><h2>Robustness</h2><p>{escape(lines[0])}. All runs get the same pixels.</p><ul>{told}</ul>"
        f"{_legend(names)}<figure>{_charts.curves(found)}</figure></section>"
    )


def _frontier(found: ParetoFront | None) -> str:
    if found is None:
        return ""
    precision = found.limits.precision
    sized = [replace(one, bytes=pareto.size_in(one, precision) or one.bytes) for one in found.candidates]
    found = replace(found, candidates=sized)  # the limit applies to this file; the JSON has all three
    rows = [
        [
            f"{place + 1}. {one.name}",
            "–" if one.params is None else f"{one.params:,}",
            "–" if one.macs is None else f"{one.macs:,}",
            f"{one.bytes / 1000:,.1f}",
            f"{one.p50_ms:.3f}" + ("" if one.steady else " (busy machine)"),
            f"{one.p95_ms:.3f}",
            f"{one.accuracy:.2%}",
            f"{one.ece:.2%}",
            "yes" if one.dominated_by else "no",
            "no: " + ", ".join(LIMITS[name] for name in one.fails) if one.fails else "yes",
        ]
        for place, one in enumerate(found.candidates)
    ]
    head = ["run", "parameters", "MACs", "kB", "p50 ms", "p95 ms", "accuracy", "ECE", "dominated", "within limits"]
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    return (
        f"<section><h2>Size, speed and accuracy</h2><p>{escape(pareto.words(found))}</p>{_table(head, rows)}"
        f"<p>Size: the ONNX file, {precision}, 1 kB = 1,000 bytes. Latency: ONNX Runtime {escape(found.runtime)}, "
        f"one image, {threads}, warmed up, on {escape(found.processor)}.</p><div class='pair'>"
        f"<figure>{_charts.pareto(found, 'bytes', 'kB (logarithmic)')}</figure>"
        f"<figure>{_charts.pareto(found, 'p50_ms', 'p50 in ms (logarithmic)')}</figure></div></section>"
    )


def _gallery(found: Comparison, kind: str, images: Any) -> str:
    cases, total = found.cases[kind][:SHOWN], found.counts[kind]
    about = compare.KINDS[kind]
    head = f"<section><h2>{TITLES[kind]}: {total:,}</h2><p>{about.capitalize()}."
    if not cases:
        return f"{head} None.</p></section>"
    more = f" The {len(cases)} with the largest KL are shown." if total > len(cases) else " Largest KL first."
    cards = []
    for one in cases:
        pixels = np.asarray(images[np.array([one.row])])[0]
        said = "".join(
            f"<dt>{who}</dt><dd>{_top(top, one.label)}</dd>"
            for who, top in (("Teacher", one.teacher), ("Student", one.student))
        )
        cards.append(
            f'<li><img src="{_picture(pixels)}" width="{THUMB}" height="{THUMB}" alt="image {one.row}"><dl>'
            f"<dt>True class</dt><dd><b>{escape(one.label)}</b>, KL {one.kl:.2f}</dd>{said}</dl></li>"
        )
    return f'{head}{more}</p><ul class="cards">{"".join(cards)}</ul></section>'


def _top(said: Sequence[Sequence[Any]], label: str) -> str:
    return ", ".join(
        f"{'<b>' if name == label else ''}{escape(str(name))}{'</b>' if name == label else ''} {share:.0%}"
        for name, share in said
    )


def _picture(pixels: NDArray[np.uint8]) -> str:
    """An image uint8 [C, H, W] as a PNG data URI, its longest side at most `THUMB`."""
    from PIL import Image

    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if max(picture.size) > THUMB:
        picture.thumbnail((THUMB, THUMB), Image.Resampling.BILINEAR)
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _method(report: Report) -> str:
    told = [
        "Intervals hold 95%: Wilson (1927) for shares, Bonett & Price (2012) for differences of paired shares.",
        "McNemar's test is exact and two-sided. KL is KL(teacher || student) in nats.",
        "ECE: 15 equal bins of the top-1 confidence (Guo et al., 2017). Brier: sum over classes, 0 to 2 (Brier, 1950).",
        "Temperatures were fitted on validation images.",
        "A run is dominated if another one is no larger, no slower and no less accurate, and better in one of these.",
        "One training seed per run: intervals exclude seed variance.",
        f"Data fingerprint {report.data.fingerprint}; runs {', '.join(run.id for run in report.runs)}.",
    ]
    items = "".join(f"<li>{escape(one)}</li>" for one in told)
    return f"<section><h2>Methods</h2><ul>{items}</ul></section>"
