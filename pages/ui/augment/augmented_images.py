"""Augmented images: which to show, the grid of images and random draws, and pairs of before and after."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from pages.ui.app import context, keys
from pages.ui.widgets import image_grid, url_state
from pages.ui.widgets.run_table import RunRow
from smallalign_core import data
from smallalign_core.analysis.label_report import Prediction
from smallalign_core.data import ImageSet
from smallalign_core.runs.store import Store
from smallalign_core.service import augmentation_api
from smallalign_core.service.requests import AugmentBatch, AugmentImages, Mixture, Pixels

LARGE = 64
"""Images with a longer side are shown in smaller numbers."""


def fitting(shape: Sequence[int]) -> tuple[int, int]:
    """(images, draws of each) that a grid of images of `shape` (channels, height, width) shows."""
    return (4, 4) if max(shape[1:]) > LARGE else (8, 6)


# --- which images -----------------------------------------------------------------------------------------------------


def choose(images: ImageSet, fingerprint: str) -> list[int]:
    """A menu of training images kept in the URL; returns their rows."""
    wanted = fitting(images.shape)[0]
    key, seen = url_state.own("rows"), st.session_state.get(keys.ROWS_OF)
    linked = url_state.changed("rows")
    if linked is not None:
        if _rows(linked, len(images)):
            st.session_state[key], seen = linked, fingerprint
        else:
            st.warning(
                f"Invalid link parameter: no such images. Given: rows={linked[:80]}. "
                f"Use indices from 0 to {len(images) - 1}."
            )
    if key not in st.session_state or seen != fingerprint:  # other data: begin with one of each class
        _put(images, None, wanted, 0)
    st.session_state[keys.ROWS_OF] = fingerprint
    with st.popover("Choose images", icon=":material/photo_library:"):
        only = st.selectbox("Class", ["All classes", *images.classes], key="rows-class", persist_state="session")
        label = None if only == "All classes" else images.classes.index(str(only))
        st.session_state.setdefault(keys.ROWS_SKIP, 0)
        st.button(
            "Next images",
            icon=":material/refresh:",
            key="rows-next",
            on_click=_put,
            args=(images, label, wanted, st.session_state[keys.ROWS_SKIP] + wanted),
        )
        if only != st.session_state.get(keys.ROWS_CLASS_SEEN, "All classes"):
            _put(images, label, wanted, 0)
        st.session_state[keys.ROWS_CLASS_SEEN] = only
        text = st.text_input(
            "Training image indices",
            st.session_state[key],
            key=key,
            persist_state="session",
            help=f"Comma-separated indices from 0 to {len(images) - 1}; at most {augmentation_api.MOST}.",
        )
    rows = _rows(str(text), len(images))
    if not rows:
        st.warning(
            f"Invalid image indices. Given: {str(text)[:80] or 'nothing'}. Enter up to {augmentation_api.MOST} "
            f"comma-separated indices from 0 to {len(images) - 1}."
        )
        rows = augmentation_api.in_turn(images.labels, wanted).tolist()
    url_state.keep("rows", ",".join(map(str, rows)))
    return rows


def _rows(text: str, count: int) -> list[int]:
    """The rows listed in a text; none if it is not a list of rows."""
    if not re.fullmatch(r"\s*\d{1,9}(\s*,\s*\d{1,9})*\s*", text):
        return []
    rows = [int(number) for number in text.split(",")]
    return rows if len(rows) <= augmentation_api.MOST and max(rows) < count else []


def _put(images: ImageSet, label: int | None, wanted: int, skip: int) -> None:
    """Select the next `wanted` images of a class, or of all classes in turn; wraps around after the last."""
    there = np.arange(len(images)) if label is None else np.flatnonzero(images.labels == label)
    skip = skip if skip < len(there) else 0
    found = augmentation_api.in_turn(images.labels, wanted, skip) if label is None else there[skip : skip + wanted]
    st.session_state[url_state.own("rows")] = ",".join(map(str, found.tolist()))
    st.session_state[keys.ROWS_SKIP] = skip


def drop(shape: tuple[int, int, int]) -> Pixels | None:
    """An uploader for one image, converted to the dataset's size and channels. None before that.

    Raises:
        BadData: it cannot be read, or is too large.
    """
    file = st.file_uploader(
        "Image file",
        type=["png", "jpg", "jpeg", "webp"],
        help="Kept in the memory of this server only; not part of the link.",
    )
    if file is None:
        st.info("No image yet. Upload a PNG, JPEG or WebP file of up to 25 megapixels.")
        return None
    return Pixels.of(data.decode_one(file.getvalue(), shape))


# --- what is shown ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """Augmented images as a style and boxes instead of pixels, for each of which see `AugmentedImages`."""

    rows: tuple[int, ...]
    labels: tuple[str | None, ...]
    mixed: tuple[tuple[Mixture, ...], ...]
    shape: tuple[int, ...]
    style: str
    boxes: list[str]


def draw(request: AugmentImages, teacher: RunRow | None, store: Store, *, busy: AbstractContextManager[object]) -> None:
    """Draw the grid, then add the teacher's prediction for each image; spinners are drawn in `busy`."""
    root = str(store.root.resolve())
    with busy:
        found, first = _drawn(request, root), request.first + 1
    st.html(found.style)
    place = st.empty()
    if teacher is None:
        place.html(_grid(found, first, None))
        return
    request = replace(request, teacher=teacher.id)
    if st.session_state.get(keys.SAID_TO) != request:  # images first; room is reserved for predictions
        place.html(_grid(found, first, None, waiting=True))
    with busy:
        predicted = _predicted(request, root)
    place.html(_grid(found, first, predicted))
    st.session_state[keys.SAID_TO] = request


def epoch(request: AugmentBatch, store: Store, *, busy: AbstractContextManager[object]) -> None:
    """Draw the first images of an epoch, each with its augmented image; spinners are drawn in `busy`."""
    with busy:
        style, shown = _met(request, str(store.root.resolve()))
    st.html(style)
    st.html(shown)


@st.cache_resource(max_entries=8, show_spinner=False)
def _drawn(
    request: AugmentImages,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> _Drawn:
    """The backend's augmented images for a request."""
    answer = context.call(request, "Augmenting images")
    shown = answer.images.array()
    style, boxes = _boxes(shown.reshape(-1, *shown.shape[2:]))
    return _Drawn(answer.rows, answer.labels, answer.mixed, shown.shape, style, boxes)


@st.cache_resource(max_entries=64, show_spinner=False)
def _predicted(
    request: AugmentImages,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> tuple[tuple[Prediction, ...], ...] | None:
    """The teacher's predicted class and confidence for each image of a request."""
    return context.call(request, "Running teacher inference").said


@st.cache_data(max_entries=8, show_spinner=False)
def _met(
    request: AugmentBatch,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> tuple[str, str]:
    """(style, HTML) of the first images of an epoch, each beside its original."""
    answer = context.call(request, "Preparing the training batch")
    captions = [
        html.escape(label if shares is None else " + ".join(map(_share, shares)))
        for label, shares in zip(answer.labels, answer.mixed, strict=True)
    ]
    return pairs(answer.images.array(), captions)


def _grid(found: _Drawn, first: int, predicted: Sequence[Sequence[Prediction]] | None, *, waiting: bool = False) -> str:
    """HTML of images x draws, the original first, with the class and the teacher's prediction below each.

    Args:
        first: the epoch of the first draw, from 1.
        waiting: whether room is reserved for the teacher's predictions.
    """
    _, columns, _, height, width = found.shape
    heads = ["Original", *(f"Epoch {first + draw}" for draw in range(columns - 1))]
    cells = [f'<span class="sa-head">{head}</span>' for head in heads]
    for place, label in enumerate(found.labels):
        number = f"image {found.rows[place]}" if label else "uploaded image"
        for column, shares in enumerate([None, *found.mixed[place]]):
            lines = (
                [label or ("uploaded" if column == 0 else "")] if shares is None else [_share(one) for one in shares]
            )
            answer = "<small>&nbsp;</small>" if waiting and predicted is None else ""
            if predicted is not None:
                clean = predicted[place][0].name
                meant = clean if shares is None else shares[0][0]  # a mixture is mostly this class
                answer = _prediction(predicted[place][column], meant, label if shares is None else meant)
            text = "<br>".join(html.escape(line) for line in lines)
            box = found.boxes[place * columns + column]
            named = image_grid.labelled(box, html.escape(f"{number}, {heads[column].lower()}"))
            cells.append(f'<figure title="{number}">{named}<figcaption>{text}</figcaption>{answer}</figure>')
    wide = _wide(height, width)
    style = f"grid-template-columns:repeat({columns},minmax(min({wide}px,56px),{wide}px))"
    return f'<div class="sa-views" style="{style}" tabindex="0">{"".join(cells)}</div>'


def _share(one: Sequence[Any]) -> str:
    """One class of a mixed label, and its share."""
    name, share = one
    return f"{name} {share:.0%}" if share < 1 else str(name)


def _prediction(one: Prediction, meant: str, label: str | None) -> str:
    """The teacher's prediction for an image; marked where it is another class than `meant`."""
    name, sure = html.escape(one.name), f"{one.confidence:.0%}"
    if one.name != meant:
        return f'<small class="sa-flip" title="predicted class: {name}">→ {name} {sure}</small>'
    tick = "✓" if one.name == label else name
    return f'<small title="predicted class: {name}">{tick} {sure}</small>'


def pairs(images: NDArray[np.uint8], captions: Sequence[str]) -> tuple[str, str]:
    """(style, HTML) of pairs uint8 [n, 2, C, H, W], before and after, each with a caption that is HTML already."""
    if not len(images):
        return "", ""
    style, boxes = _boxes(images.reshape(-1, *images.shape[2:]))
    wide = _wide(*images.shape[3:], small=64, large=120)
    cells = [
        f'<figure style="width:{2 * wide + 24}px"><div>{boxes[2 * place]}<span class="sa-to">→</span>'
        f"{boxes[2 * place + 1]}</div><figcaption>{caption}</figcaption></figure>"
        for place, caption in enumerate(captions)
    ]
    return style, f'<div class="sa-pairs">{"".join(cells)}</div>'


def _wide(height: int, width: int, *, small: int = 84, large: int = 150) -> int:
    """Width of an image in CSS pixels where there is room: a whole multiple of small ones."""
    if max(height, width) > LARGE:
        return round(large * width / max(height, width))
    return width * max(1, round(small / max(height, width)))


def _boxes(images: NDArray[np.uint8]) -> tuple[str, list[str]]:
    """As `image_grid.tiles`, for boxes as wide as their container."""
    height, width = images.shape[2:]
    name, address = image_grid.named_sprite(images)
    lines = -(-len(images) // image_grid.ACROSS)
    smooth = "image-rendering:auto;" if max(height, width) > LARGE else ""
    style = (
        f"<style>.{name}{{aspect-ratio:{width}/{height};background-image:url({address});{smooth}"
        f"background-size:{100 * image_grid.ACROSS}% {100 * lines}%}}</style>"
    )
    boxes = []
    for index in range(len(images)):
        down, right = divmod(index, image_grid.ACROSS)
        x, y = 100 * right / (image_grid.ACROSS - 1), 100 * down / max(1, lines - 1)
        boxes.append(f'<span class="sa-tile sa-fluid {name}" style="background-position:{x:.4f}% {y:.4f}%"></span>')
    return style, boxes
