"""The Compare page's parts, one file per tab, and what they share: the compared runs, and cached predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import streamlit as st

from pages.ui.app import context
from pages.ui.charts import theme
from pages.ui.widgets import image_grid, polling
from pages.ui.widgets.run_table import RunRow
from smallalign_core.analysis import compare
from smallalign_core.analysis.compare import Compared
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadInput
from smallalign_core.runs.store import Store
from smallalign_core.service.requests import Compare
from smallalign_core.service.wire import LongRequest, Progress

R = TypeVar("R")


@dataclass(frozen=True)
class Sides:
    """The compared runs, and the images.

    Attributes:
        runs: the teacher first, the student second, and any others.
        split: `test` or `val`.
    """

    runs: tuple[RunRow, ...]
    split: str
    store: Store

    @property
    def ids(self) -> tuple[str, ...]:
        """The runs' ids."""
        return tuple(run.id for run in self.runs)

    @property
    def names(self) -> list[str]:
        """Short names: those of the zoo by name, others by the beginning of their id."""
        return [run.name if run.in_zoo else run.id[:6] for run in self.runs]

    @property
    def colours(self) -> list[str]:
        """One color per run: the teacher's is the same on all charts, and so is the student's."""
        student, teacher, *others = theme.palette()
        return [teacher, student, *others][: len(self.runs)] + ["#808C98"] * (len(self.runs) - 10)

    @property
    def key(self) -> str:
        """Equal for the same comparison in the same store."""
        return " ".join([*self.ids, self.split, str(self.store.root.resolve())])

    def images(self) -> ImageSet:
        """The held-out images, left on the disk; those of the student's data."""
        images: ImageSet = getattr(self.splits(), self.split)
        return images

    def splits(self) -> Splits:
        """The student's data."""
        return image_grid.splits(self.store.run(self.runs[1].id).data, self.store)

    def pair(self) -> compare.Pair:
        """The predictions of teacher and student for each image."""
        root = str(self.store.root.resolve())
        key = (self.runs[0].id, self.runs[1].id, self.split, root, self.store)
        try:
            return _pair(*key)
        except BadInput:  # the store's cache was emptied since they were compared
            pairs.clear()
            pairs(self.ids, self.split, root)
            return _pair(*key)


@st.cache_resource(max_entries=16, show_spinner=False)
def pairs(
    ids: tuple[str, ...],
    split: str,
    root: str,  # noqa: ARG001  # part of the cache's key
) -> tuple[Compared, ...]:
    """The backend's comparison of the first run with each of the others, cached: finished runs do not change."""
    found = context.call(Compare(ids, split), "Computing predictions")
    return found, *found.others


@st.cache_resource(max_entries=4, show_spinner=False)
def _pair(
    teacher: str,
    student: str,
    split: str,
    root: str,  # noqa: ARG001  # part of the cache's key
    _store: Store,
) -> compare.Pair:
    runs = _store.run(teacher), _store.run(student)
    return compare.pair(*runs, image_grid.splits(runs[1].data, _store), _store, split)


@st.cache_resource(max_entries=32, show_spinner=False)
def _finished(request: LongRequest[Progress[R]], key: str) -> R:  # noqa: ARG001  # part of the cache's key
    return polling.step(request)


def in_steps(request: LongRequest[Progress[R]], sides: Sides, label: str) -> R:
    """The backend's report on all runs, with a progress bar until it is ready. A click on the page interrupts it."""
    return polling.wait(lambda: _finished(request, f"{request.verb()} {sides.key}"), label)


def wanted(key: str, content: str, label: str, about: str, *, icon: str) -> bool:
    """Whether long work was requested; until then a button that requests it, with a description."""
    if st.session_state.get(key) == content:
        return True
    st.caption(about)
    st.button(label, icon=icon, key=f"{key}-button", on_click=st.session_state.__setitem__, args=(key, content))
    return False


def shown(images: ImageSet, rows: list[int]) -> tuple[str, list[str]]:
    """The style and the boxes of some images, as `image_grid.tiles`."""
    return image_grid.tiles(images.take(np.array(rows, np.int64)).images[:])
