"""Are the data clean enough? What is found is what was put there, on real digits; and what many decide is kept."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from smallalign_core import data, quality
from smallalign_core.data import Decision
from smallalign_core.errors import BadData, BadInput, Refused
from smallalign_core.spec import DataSpec
from smallalign_core.store import Store
from smallalign_core.visitors import Role, Visitor

SOME = "0123456789abcdef"


# --- decisions in progress --------------------------------------------------------------------------------------------


def test_decisions_are_kept_undone_step_by_step_and_serve_a_run(store: Store) -> None:
    splits = data.load(DataSpec(source="digits"), store.data_cache)
    print_, images = splits.fingerprint, [int(one) for one in splits.train.ids[:3]]
    assert quality.decisions(store, print_).by_image == {}
    quality.decide(store, print_, "digits", [(images[0], Decision("drop")), (images[1], Decision("relabel", "7"))])
    quality.decide(store, print_, "digits", [(images[0], Decision("keep"))])
    found = data.load(DataSpec(source="digits", decisions=str(quality.file_of(store, print_))), store.data_cache)
    assert found.train.labels[found.train.ids == images[1]].tolist() == [7]
    assert quality.undoable(store, print_) == 2
    after, changed = quality.undo(store, print_)
    assert changed == [(images[0], Decision("drop"))]
    assert after == quality.decisions(store, print_)
    assert quality.undo(store, print_)[1] == [(images[0], None), (images[1], None)]
    assert quality.decisions(store, print_).by_image == {}
    assert quality.undo(store, print_)[1] == []


def test_who_undoes_takes_back_only_what_is_theirs(store: Store) -> None:
    ada, ben = (Store(store.root, Visitor(name)) for name in ("ada", "ben"))
    quality.decide(ada, SOME, "x", [(1, Decision("drop")), (2, Decision("drop"))])
    quality.decide(ben, SOME, "x", [(2, Decision("keep")), (3, Decision("drop"))])
    assert quality.undo(ada, SOME)[1] == [(1, None)]
    assert quality.decisions(ada, SOME).by_image == {2: Decision("keep"), 3: Decision("drop")}
    assert quality.undo(ada, SOME)[1] == []
    assert quality.undo(ben, SOME)[0].by_image == {2: Decision("drop")}


def test_nothing_is_lost_where_many_decide_at_once(store: Store) -> None:
    def one(image: int) -> None:
        quality.decide(Store(store.root, Visitor(f"v{image % 4}")), SOME, "x", [(image, Decision("drop"))])

    with ThreadPoolExecutor(8) as crowd:
        list(crowd.map(one, range(40)))
    assert quality.decisions(store, SOME).count() == {"drop": 40}


def test_what_cannot_be_decided_is_refused(store: Store) -> None:
    viewer = Store(store.root, Visitor("eve", Role.VIEWER))
    with pytest.raises(Refused, match="decide about images"):
        quality.decide(viewer, SOME, "x", [(1, Decision("drop"))])
    with pytest.raises(Refused, match="decide about images"):
        quality.undo(viewer, SOME)
    with pytest.raises(BadInput, match="fingerprint"):
        quality.decisions(store, "../../etc")
    for change in ((-1, Decision("drop")), (1, Decision("relabel")), (1, Decision("keep", "3"))):
        with pytest.raises(BadInput):
            quality.decide(store, SOME, "x", [change])
    assert not (store.root / "decisions").exists()
    file = quality.file_of(store, SOME)
    quality.decide(store, SOME, "x", [(1, Decision("drop"))])
    file.write_text(file.read_text().replace("drop", "keep"))
    damaged = file.read_text()
    with pytest.raises(BadData, match="damaged"):
        quality.decide(store, SOME, "x", [(2, Decision("drop"))])
    assert file.read_text() == damaged


# --- reports ----------------------------------------------------------------------------------------------------------


def test_clean_digits_are_found_clean_and_the_report_is_kept(tmp_path: Path, decoded: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data").symlink_to(decoded)
    assert quality.quality(store, "digits", start=False) == {"done": 0.0}
    report = quality.look(store, DataSpec(source="digits"))
    assert report.duplicates == report.leaks == ()
    assert len(report.label_issues) <= 0.005 * report.images
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False)) == json.loads(
        json.dumps(quality.quality(store, "digits", start=False)["report"])
    )
    assert quality.QualityReport.from_dict(json.loads(json.dumps(report.as_dict()))) == report


def test_unknown_ways_are_refused(store: Store) -> None:
    with pytest.raises(BadInput, match="such a way"):
        quality.look(store, DataSpec(source="digits"), method="guess")
    with pytest.raises(BadInput, match="teacher was named"):
        quality.look(store, DataSpec(source="digits"), method="teacher")
