"""Labels in a table: which columns, which images, which splits; what is refused, and in which words."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import command, texts
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.datasets import load_digits

import smallalign_core as sa
from smallalign_core import data
from smallalign_core.data import Splits, _labels, _named, _tables
from smallalign_core.data._files import Entry
from smallalign_core.data._table_formats import FORMATS
from smallalign_core.errors import BadData, Refused
from smallalign_core.runs import uploads
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec, canonical, digest, parse, parse_data, to_yaml
from smallalign_core.system import limits

DRAW = np.random.default_rng(0)
COUNT = 24
ANIMALS = ("cat", "dog", "owl")


def picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(DRAW.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with 24 images in `images/` and no labels."""
    for number in range(COUNT):
        picture(tmp_path / "set" / "images" / f"{number}.png")
    return tmp_path / "set"


def load(source: Path, **fields: object) -> Splits:
    return data.load(parse_data({"source": str(source), **fields}), source.parent / "cache")


def everything(splits: Splits) -> dict[str, str]:
    """The class of each image by its path."""
    found = {}
    for part in (splits.train, splits.val, splits.test):
        found |= {str(part.path(row)): part.classes[part.labels[row]] for row in range(len(part))}
    return found


def written(file: Path, rows: Sequence[Sequence[object]], *, encoding: str = "utf-8", **dialect: str) -> Path:
    text = io.StringIO()
    csv.writer(text, **dialect).writerows(rows)  # type: ignore[arg-type]
    file.write_bytes(text.getvalue().encode(encoding))
    return file


def usual(names: Sequence[str] = ANIMALS, count: int = COUNT) -> list[list[str]]:
    return [["path", "label"], *([f"images/{number}.png", names[number % len(names)]] for number in range(count))]


def told(splits: Splits) -> str:
    return " | ".join(splits.notes)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_table_is_a_source_of_its_own(root: Path) -> None:
    file = written(root / "labels.csv", usual())
    splits = load(file)
    assert everything(splits) == {f"images/{number}.png": ANIMALS[number % 3] for number in range(COUNT)}
    assert (splits.reader, splits.columns) == ("table", {"path": "path", "label": "label"})
    assert load(root).fingerprint == splits.fingerprint, "the folder that holds both is the same dataset"
    assert sa.load(str(file), store=root.parent / "store").fingerprint == splits.fingerprint


def tabled(file: Path, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of text, in the format that the file's ending names."""
    match file.suffix:
        case ".csv" | ".tsv":
            written(file, [head, *rows], delimiter="\t" if file.suffix == ".tsv" else ",")
        case ".jsonl":
            file.write_text("\n".join(json.dumps(dict(zip(head, row, strict=True))) for row in rows))
        case ".parquet" | ".arrow":
            import pyarrow as pa
            import pyarrow.ipc
            import pyarrow.parquet as pq

            table = pa.table({name: [row[at] for row in rows] for at, name in enumerate(head)})
            if file.suffix == ".parquet":
                pq.write_table(table, file)
            else:
                with pa.ipc.new_stream(file, table.schema) as writer:
                    writer.write_table(table)
        case _:
            pytest.fail(f"no case writes {file.suffix} here: each format is read alone, in a folder and in a zip")


@pytest.mark.parametrize("way", ["alone", "folder", "zip"])
@pytest.mark.parametrize("ending", FORMATS)
def test_every_kind_of_table_says_the_same(ending: str, way: str, root: Path) -> None:
    head, *rows = usual()
    file = root / f"labels{ending}"
    tabled(file, head, rows)
    source = {"alone": file, "folder": root, "zip": root.parent / "set.zip"}[way]
    if way == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            for one in (one for one in sorted(root.rglob("*")) if one.is_file()):
                archive.write(one, one.relative_to(root))
    assert everything(load(source)) == {row[0]: row[1] for row in rows}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_encodings(encoding: str, root: Path) -> None:
    names = ("chat", "hérisson", "épervier")
    splits = load(written(root / "labels.csv", usual(names), encoding=encoding))
    assert set(splits.classes) == set(names)
    assert ("was read as Latin-1" in told(splits)) == (encoding == "latin-1")


@settings(max_examples=60)
@given(
    cells=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1).filter(str.strip),
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip),
        ),
        min_size=1,
        max_size=30,
    ),
    mark=st.sampled_from(",;\t|"),
    line=st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_spreadsheet_quotes_is_read_back(
    cells: list[tuple[str, str]], mark: str, line: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("quoted") / "labels.csv"
    text = io.StringIO()
    csv.writer(text, delimiter=mark, lineterminator=line, quoting=csv.QUOTE_ALL).writerows([("path", "label"), *cells])
    file.write_bytes(text.getvalue().encode())
    table = _tables.read(Entry((file.name,), file))
    assert table.rows == [["path", "label"], *map(list, cells)]


def test_hundred_thousand_rows_are_not_looked_at_one_file_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders are listed once each; a `stat` for each row would take minutes on a network."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / "images" / name)
    rows = [["path", "label"], *([f"images/{number}.png", str(number % 5)] for number in range(100_000))]
    table = _tables.read(Entry(("t.csv",), written(tmp_path / "t.csv", rows)))
    looked = []
    scan = os.scandir
    monkeypatch.setattr("os.scandir", lambda place: looked.append(place) or scan(place))
    chosen = _labels.Chosen(0, 1, None, headed=True)
    with pytest.raises(BadData, match=r"100,000 rows of 100,000 with images that do not exist"):
        _labels.labelled(table, chosen, _named.Below(tmp_path), lambda _: None, lambda _: "train", skip=False)
    assert len(looked) == 1


def test_a_second_table_that_speaks_of_other_things_is_left_alone(root: Path) -> None:
    """As it was before columns were found by what they hold: stored runs have such folders."""
    written(root / "labels.csv", usual())
    alone = load(root).fingerprint
    more = [["img", "camera", "day"], *([f"images/{at}.png", "ab"[at % 2], "xyz"[at % 3]] for at in range(COUNT))]
    written(root / "more.csv", more)  # two columns that may be labels
    assert load(root).fingerprint == alone
    written(root / "more.csv", [[*row[:2], "-"] for row in more])  # one
    assert load(root).fingerprint == alone


def test_a_run_whose_table_named_missing_images_still_finds_its_own(root: Path) -> None:
    written(root / "labels.csv", usual())
    fingerprint = load(root).fingerprint
    written(root / "labels.csv", [*usual(), *([f"images/gone{at}.png", "cat"] for at in range(5))])
    with pytest.raises(BadData, match="5 rows of 29 with images that do not exist"):
        load(root)
    assert load(root, fingerprint=fingerprint).fingerprint == fingerprint


# --- columns ----------------------------------------------------------------------------------------------------------


def test_columns_are_found_by_what_they_hold(root: Path) -> None:
    """None of these names says anything."""
    rows = [
        ["n", "where", "what", "note"],
        *([str(at), f"images/{at}.png", ANIMALS[at % 3], f"seen on day {at}"] for at in range(COUNT)),
    ]
    assert load(written(root / "t.csv", rows)).columns == {"path": "where", "label": "what"}


def test_a_number_beside_its_name_is_the_same_choice(root: Path) -> None:
    rows = [["n", "img", "code", "kind"], *([at, f"images/{at}.png", at % 3, ANIMALS[at % 3]] for at in range(COUNT))]
    assert load(written(root / "t.csv", rows)).columns["label"] == "kind"


def test_several_columns_of_labels_are_a_question(root: Path) -> None:
    rows = [["img", "kind", "coat"], *([f"images/{at}.png", ANIMALS[at % 3], "ab"[at % 2]] for at in range(COUNT))]
    file = written(root / "t.csv", rows)
    with pytest.raises(
        BadData, match=r"(?i)several columns.*kind \(3 different\), coat \(2 different\).*data.columns.label=kind"
    ):
        load(file)
    splits = load(file, columns={"label": "coat"})
    assert splits.classes == ("a", "b")
    assert splits.columns == {"path": "img", "label": "coat"}
    assert load(root, columns={"label": "kind"}).classes == ANIMALS, "in a folder too"


def test_columns_of_a_source_without_a_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"the source is no table of labels \(given: digits\)"):
        data.load(parse_data({"source": "digits", "columns": {"label": "species"}}), tmp_path / "cache")


def test_columns_that_are_named_win(root: Path) -> None:
    rows = [["path", "label", "file", "species", "part"]]
    for at in range(COUNT):
        part = ("train", "train", "dev", "testing")[at % 4]
        rows.append([f"images/{COUNT - 1 - at}.png", "x" if at % 2 else "y", f"images/{at}.png", ANIMALS[at % 3], part])
    file = written(root / "t.csv", rows)
    splits = load(file, columns={"path": "file", "label": "species", "split": "part"})
    assert everything(splits) == {f"images/{at}.png": ANIMALS[at % 3] for at in range(COUNT)}
    assert {str(splits.test.path(row)) for row in range(6)} == {f"images/{at}.png" for at in range(3, COUNT, 4)}
    with pytest.raises(BadData, match=r"no column colour.*path, label, file, species, part"):
        load(file, columns={"label": "colour"})
    with pytest.raises(BadData, match="names one column twice"):
        load(file, columns={"path": "file", "label": "file"})


def test_without_a_header_columns_have_numbers(root: Path) -> None:
    file = written(root / "t.csv", usual()[1:])
    assert load(file).columns == {"path": "1", "label": "2"}
    assert load(file, columns={"path": "1", "label": "2"}).fingerprint == load(file).fingerprint


@pytest.mark.parametrize(
    ("spelled", "part"),
    [
        *((word, "train") for word in ("train", "Training", "TRAIN")),
        *((word, "val") for word in ("valid", "Validation", "val", "dev")),
        *((word, "test") for word in ("test", "Testing", "TEST ")),
    ],
)
def test_splits_as_people_spell_them(spelled: str, part: str, root: Path) -> None:
    rows = [["path", "label", "split"]]
    others = {"train", "val", "test"} - {part}
    rows += [
        [f"images/{at}.png", "ab"[at % 2], spelled if at < 8 else sorted(others)[at // 2 % 2]] for at in range(COUNT)
    ]
    splits = load(written(root / "t.csv", rows))
    found = getattr(splits, part)
    assert {str(found.path(row)) for row in range(len(found))} == {f"images/{at}.png" for at in range(8)}


def test_one_table_for_each_split(root: Path) -> None:
    head, *rows = usual()
    written(root / "train.csv", [head, *rows[:15]])
    written(root / "Validation.csv", [head, *rows[15:21]])
    written(root / "test.csv", [head, *rows[21:]])
    splits = load(root)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [15, 6, 3]
    assert "have no row" not in told(splits)
    (root / "test.csv").rename(root / "more.csv")
    with pytest.raises(BadData, match=r"(?i)several tables hold labels.*more\.csv"):
        load(root)


def test_names_without_their_folder_or_ending_are_found_below_the_table(root: Path) -> None:
    rows = [["id", "label"], *([str(number), ANIMALS[number % 3]] for number in range(COUNT))]
    splits = load(written(root / "t.csv", rows))
    assert everything(splits)["images/4.png"] == "dog"
    picture(root / "images" / "0.png")
    assert load(root / "t.csv").fingerprint != splits.fingerprint, "a changed image is another dataset"


def test_a_changed_image_is_read_again(root: Path) -> None:
    file = written(root / "labels.csv", usual())
    before = load(file).fingerprint
    picture(root / "images" / "0.png")
    assert load(file).fingerprint != before
    written(file, usual(count=23))
    assert len(everything(load(file))) == 23


# --- what is left out, and what is refused ----------------------------------------------------------------------------


def test_all_that_is_left_out_is_counted(root: Path) -> None:
    rows = usual(count=20)
    rows += [["images/0.png", "cat"], ["images/20.png", ""], ["", "dog"], []]
    splits = load(written(root / "labels.csv", rows))
    assert len(everything(splits)) == 20
    for words in (
        "1 row of labels.csv with an image that was named before, with the same label: left out (row 22: images/0.png)",
        "1 row of labels.csv without a label: left out (row 23: images/20.png)",
        "1 row of labels.csv without a path",
        "4 images have no row in labels.csv and were left out: images/20.png, images/21.png, images/22.png",
    ):
        assert words in told(splits)


def test_missing_images_are_counted_and_named_by_row(root: Path) -> None:
    rows = usual()
    for at in (3, 9, 11, 17):
        rows[at][0] = f"images/gone{at}.png"
    file = written(root / "labels.csv", rows)
    with pytest.raises(
        BadData, match=r"4 rows of 24 with images.*row 4: images/gone3\.png; row 10: .*; and 1 more"
    ) as found:
        load(file)
    assert "data.skip_unreadable" in found.value.do
    splits = load(file, skip_unreadable=True)
    assert len(everything(splits)) == 20
    assert "images/gone3.png" in splits.unreadable
    assert "row 4 of labels.csv" in splits.reasons[splits.unreadable.index("images/gone3.png")]


def test_a_table_of_which_no_image_exists_says_so(tmp_path: Path) -> None:
    rows = [["file", "label"], *([f"x/{at}.jpg", "ab"[at % 2]] for at in range(9))]
    with pytest.raises(BadData, match=r"9 rows of 9 with images that do not exist.*row 2: x/0\.jpg"):
        load(written(tmp_path / "t.csv", rows))


REFUSED: list[tuple[str, list[list[str]], str]] = [
    ("two labels", [["images/0.png", "dog"]], r"two labels \(1 row\).*row 26: images/0\.png is cat and dog"),
    (
        "parent",
        [["../elsewhere/x.png", "dog"]],
        r"1 row with paths outside.*row 26: \.\./elsewhere/x\.png",
    ),
    ("through a folder", [["images/../../x.png", "dog"]], "with paths outside"),
    ("absolute", [["/etc/hostname", "dog"]], "with paths outside"),
    ("Windows", [["C:\\Users\\x.png", "dog"]], "with paths outside"),
    ("a separator in a name", [["images/20.png", "dog", " brown"]], r"more cells than the first.*row 26: 3 cells"),
]


@pytest.mark.parametrize(("rows", "words"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
@pytest.mark.parametrize("way", ["table", "folder", "zip"])
def test_rows_that_cannot_be_meant_are_refused(rows: list[list[str]], words: str, way: str, root: Path) -> None:
    picture(root.parent / "elsewhere" / "x.png")
    picture(root.parent / "x.png")
    file = written(root / "labels.csv", [*usual(), *rows])
    if way == "zip":
        with zipfile.ZipFile(root.parent / "set.zip", "w") as archive:
            for one in sorted(root.rglob("*.*")):
                archive.write(one, one.relative_to(root))
    with pytest.raises(BadData, match=words):
        load({"table": file, "folder": root, "zip": root.parent / "set.zip"}[way])


def test_an_absolute_path_inside_the_folder_is_as_good(root: Path) -> None:
    rows = [["path", "label"], *([str((root / row[0]).resolve()), row[1]] for row in usual()[1:])]
    file = written(root / "labels.csv", rows)
    assert everything(load(file)) == everything(load(root)) != {}


@pytest.mark.parametrize(
    "labels",
    [("cat|dog", "cat", "dog"), ("cat;dog", "cat", "dog"), ('["cat", "dog"]', '["owl"]', '["cat"]')],
    ids=["bars", "semicolons", "lists"],
)
def test_several_labels_in_one_cell_are_refused(labels: tuple[str, ...], root: Path) -> None:
    with pytest.raises(BadData, match="several labels in one cell, which is not supported"):
        load(written(root / "labels.csv", usual(labels)))


def test_a_space_separates_labels_only_where_all_words_are_some(root: Path) -> None:
    assert len(load(written(root / "a.csv", usual(("red", "wine", "red wine"))), size=8).classes) == 3
    with pytest.raises(BadData, match=r"several labels in one cell.*red wine, wine glass"):
        load(written(root / "b.csv", usual(("red", "wine", "glass", "red wine", "wine glass"), COUNT)))


def test_names_with_a_comma_are_names(root: Path) -> None:
    names = ("Pepper, bell", "Pepper, hot", "Corn, sweet")
    assert load(written(root / "labels.csv", usual(names))).classes == tuple(sorted(names))


def test_one_column_per_class_is_refused(root: Path) -> None:
    rows = [["img", "cat", "dog"], *([f"images/{at}.png", at % 2, (at + 1) % 2] for at in range(COUNT))]
    with pytest.raises(BadData, match=r"one column of 0 and 1 per class"):
        load(written(root / "labels.csv", rows))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'path,label\nimages/0.png,"cat\nimages/1.png,dog\n', "quotation mark that is not closed"),
        (b"path,label\nimages/0.png," + b"x" * 140_000 + b"\n", "over 131,072 characters"),
        (b"\x7fELF\0\0\0\1\0\0\2\3" * 400, "holds zero bytes"),
        (b"\xff\xfep\0a\0t\0h", "no column of image files|goes? on so|does not go on"),
        (b"", "no column of image files"),
        (b"path,label\n", "no column of image files"),
        (b"path,label\nimages/0.png,\nimages/1.png,\n", "(?i)no row of the table has an image and a label"),
        (b"path,label\n" + b"".join(b"images/%d.png,cat\n" % at for at in range(24)), "at least two classes"),
        (
            b"path,label,split\n" + b"".join(b"images/%d.png,%d,test\n" % (at, at % 2) for at in range(24)),
            "split|train",
        ),
    ],
    ids=["quote", "huge", "binary", "half of UTF-16", "empty", "header", "no labels", "one class", "only test"],
)
def test_tables_that_say_too_little_are_refused_in_words(content: bytes, words: str, root: Path) -> None:
    (root / "labels.csv").write_bytes(content)
    with pytest.raises(BadData, match=words):
        load(root / "labels.csv")


def test_a_zero_byte_in_a_path_is_a_missing_image(root: Path) -> None:
    rows = usual()
    rows[3][0] = "images/0.png\0.jpg"
    with pytest.raises(BadData, match="1 row of 24 with images that do not exist"):
        load(written(root / "labels.csv", rows))


def test_a_split_that_is_not_understood_is_refused(root: Path) -> None:
    rows = [
        ["path", "label", "split"],
        *([*row, "extra" if at == 5 else "train"] for at, row in enumerate(usual()[1:])),
    ]
    with pytest.raises(BadData, match=r"with a split that is not understood.*row 7: extra"):
        load(written(root / "labels.csv", rows))


# --- who may read what ------------------------------------------------------------------------------------------------


@pytest.fixture
def confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Users' paths are read below `allowed` only, as in the dashboard's processes."""
    (tmp_path / "allowed").mkdir()
    monkeypatch.setenv(limits.ROOTS, str(tmp_path / "allowed"))
    limits.require_allowed(tmp_path / "store")
    yield tmp_path / "allowed"
    monkeypatch.delenv(limits.ROOTS)
    limits.require_allowed()


def test_a_table_opens_no_way_out_of_the_allowed_folders(confined: Path, tmp_path: Path) -> None:
    for number in range(COUNT):
        picture(tmp_path / "secret" / f"{number}.png")
    (confined / "images").symlink_to(tmp_path / "secret")
    with pytest.raises(Refused, match="outside the folders"):
        load(written(confined / "labels.csv", usual()))
    with pytest.raises(Refused, match="outside the folders"):
        load(written(tmp_path / "secret" / "labels.csv", usual()))


def test_an_upload_reads_no_file_of_this_machine(tmp_path: Path) -> None:
    """Its table may name only what came with it, however the path is written."""
    store = Store(tmp_path / "store")
    for number in range(COUNT):
        picture(tmp_path / "set" / "images" / f"{number}.png")
    picture(tmp_path / "secret.png")
    for way in (str(tmp_path / "secret.png"), "../../secret.png", "images/../../../secret.png", "~/secret.png"):
        written(tmp_path / "set" / "labels.csv", [*usual(), [way, "dog"]])
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for one in sorted((tmp_path / "set").rglob("*.*")):
                archive.write(one, one.relative_to(tmp_path / "set"))
        file, _ = uploads.keep(store, "x.zip", packed.getvalue())
        with pytest.raises(BadData, match=r"with paths outside|do not exist"):
            data.load(DataSpec(source=str(file)), store.data_cache)


# --- order of classes -------------------------------------------------------------------------------------------------


def numbered(root: Path, *, table: bool) -> Path:
    """120 images of 12 classes, the same on every machine."""
    draw = np.random.default_rng(7)
    lines = ["file,label"]
    for number in range(120):
        label = str(number % 12)
        folder = root / ("images" if table else label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        lines.append(f"images/{number}.png,{label}")
    if table:
        (root / "labels.csv").write_text("\n".join(lines))
        (root / "classes.txt").write_text("\n".join(f"class {letter}" for letter in "lkjihgfedcba"))
    return root


@pytest.mark.parametrize("table", [False, True], ids=["folders", "table"])
@pytest.mark.parametrize(("images", "fingerprint"), [(None, "28357d5795230f26"), (48, "43d311d48a541fbf")])
def test_a_run_of_before_keeps_its_order_of_classes(
    table: bool, images: int | None, fingerprint: str, tmp_path: Path
) -> None:
    """The fingerprints are those that the version before natural order gave these images."""
    root = numbered(tmp_path / "set", table=table)
    before = load(root, images=images, draw=1, fingerprint=fingerprint)
    assert before.classes == tuple(sorted(map(str, range(12))))
    assert before.fingerprint == fingerprint
    now = load(root, images=images, draw=1)
    assert now.fingerprint != fingerprint
    names = tuple(f"class {letter}" for letter in "lkjihgfedcba") if table else tuple(map(str, range(12)))
    assert now.classes == names
    assert load(root, images=images, draw=1, fingerprint=now.fingerprint).classes == names
    if images is None:
        number = {name: str(at) for at, name in enumerate(names)}
        assert {path: number[name] for path, name in everything(now).items()} == everything(before)


def test_numbers_are_sorted_as_numbers_and_words_as_before(tmp_path: Path) -> None:
    for name in ("10", "9", "b10", "b9", "Z", "a"):
        for number in range(5):
            picture(tmp_path / "set" / name / f"{number}.png")
    assert load(tmp_path / "set").classes == ("9", "10", "Z", "a", "b9", "b10")


def test_the_order_of_a_list_of_classes(tmp_path: Path) -> None:
    for name in ANIMALS:
        for number in range(5):
            picture(tmp_path / "set" / name / f"{number}.png")
    (tmp_path / "set" / "classes.txt").write_text("0 owl\n1 newt\n2 cat\n3 dog\n")
    splits = load(tmp_path / "set")
    assert splits.classes == ("owl", "cat", "dog")
    assert everything(splits)["owl/3.png"] == "owl"
    assert "1 classes of classes.txt have no images" in told(splits)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for one in sorted((tmp_path / "set").rglob("*.*")):
            archive.write(one, one.relative_to(tmp_path / "set"))
    assert load(tmp_path / "set.zip").fingerprint == splits.fingerprint
    (tmp_path / "set" / "classes.txt").write_text("owl\ncat\n")
    splits = load(tmp_path / "set")
    assert splits.classes == ANIMALS
    assert "classes.txt does not give the order of classes: it lacks dog" in told(splits)


# --- levels -----------------------------------------------------------------------------------------------------------


def levelled(root: Path) -> Path:
    for kind, inner in (("pet", "cat"), ("pet", "dog"), ("wild", "cat"), ("wild", "owl")):
        for number in range(5):
            picture(root / kind / inner / "more" / f"{number}.png")
    return root


def test_levels_of_class_folders(tmp_path: Path) -> None:
    root = levelled(tmp_path / "set")
    picture(root / "pet" / "loose.png")
    splits = load(root, levels=2)
    assert splits.classes == ("pet/cat", "pet/dog", "wild/cat", "wild/owl")
    assert everything(splits)["wild/owl/more/1.png"] == "wild/owl"
    assert "1 image outside the class folders was left out: pet/loose.png" in told(splits)
    assert load(root).classes == ("pet", "wild")
    with pytest.raises(BadData, match=r"(?i)no folder of images lies 4 levels deep"):
        load(root, levels=4)


@pytest.mark.parametrize("source", ["digits", "labels.csv"])
def test_levels_of_images_without_class_folders_are_refused(source: str, root: Path) -> None:
    file = written(root / "labels.csv", usual())
    with pytest.raises(BadData, match=r"(?i)come from no folders .*leave data\.levels out"):
        data.load(parse_data({"source": str(file) if source != "digits" else source, "levels": 2}), root.parent / "c")


def test_levels_below_splits(tmp_path: Path) -> None:
    levelled(tmp_path / "set" / "train")
    levelled(tmp_path / "set" / "testing")
    splits = load(tmp_path / "set", levels=2)
    assert (len(splits.classes), len(splits.test)) == (4, 20)


# --- specs and commands -----------------------------------------------------------------------------------------------


def test_a_fingerprint_stands_for_columns_and_levels() -> None:
    plain = parse({"data": "t.csv", "network": "cnn"})
    named = parse({"data": {"source": "t.csv", "columns": {"label": "species"}, "levels": 2}, "network": "cnn"})
    assert canonical(plain.data) == {"source": "t.csv"}
    assert canonical(named.data) == {"source": "t.csv", "columns": {"label": "species"}, "levels": 2}
    known = {"fingerprint": "0" * 16}
    plain, named = (one.model_copy(update={"data": one.data.model_copy(update=known)}) for one in (plain, named))
    assert digest(plain) == digest(named)
    assert "species" in to_yaml(named), "the YAML can be used where the images are decoded anew"


def test_inspect_names_reader_and_columns(root: Path) -> None:
    rows = [["where", "what", "coat"], *([f"images/{at}.png", ANIMALS[at % 3], "ab"[at % 2]] for at in range(COUNT))]
    file = written(root / "t.csv", rows)
    store = ["--store", str(root.parent / "store")]
    done = command("inspect", str(file), *store)
    assert done.returncode == 2
    assert "data.columns.label=what" in done.stderr
    for field in ("columns.label", "data.columns.label"):  # as the message names it, too
        done = command("inspect", str(file), "--set", f"{field}=coat", "--json", *store)
        found = json.loads(done.stdout)
        assert (found["reader"], found["columns"]) == ("table", {"path": "where", "label": "coat"})
    done = command("inspect", str(file), "--set", "columns.lable=coat", *store)
    assert "unknown field `columns.lable`, did you mean `label`" in done.stderr.lower()


def test_evaluate_names_the_columns_of_its_dataset(tmp_path: Path) -> None:
    """In a table with two columns of labels, the digit is the one that is named."""
    digits, rows = load_digits(), [["file", "digit", "parity"]]
    for number in range(40):
        file = tmp_path / f"{number}.png"
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(file)
        rows.append([file.name, str(digits.target[number]), str(digits.target[number] % 2)])
    line = ("evaluate", "digits-student", "--store", str(tmp_path / "store"), "--json")
    table = str(written(tmp_path / "t.csv", rows))

    assert command(*line, "--data", table).returncode == 2
    found = json.loads(command(*line, "--data", table, "--set", "columns.label=digit").stdout)
    assert (found["data"], found["accuracy"] > 0.5) == (table, True)
    assert 0 < found["images"] <= 40

    other = command(*line, "--data", table, "--set", "source=digits")
    assert (other.returncode, "names another dataset" in other.stderr) == (2, True)
    alone = command(*line, "--set", "columns.label=digit")
    assert (alone.returncode, "add --data" in alone.stderr.lower()) == (2, True)


@pytest.mark.slow
def test_training_from_a_table(root: Path) -> None:
    file = written(root / "labels.csv", usual(count=COUNT))
    spec = root.parent / "spec.yaml"
    spec.write_text(
        f"data: {{source: {file}, columns: {{path: path, label: label}}}}\nnetwork: mlp\nepochs: 1\nbatch: 4\n"
    )
    done = command("train", str(spec), "--json", "--store", str(root.parent / "store"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    run = Store(root.parent / "store").run(result["id"])
    assert (run.result or {})["classes"] == list(ANIMALS)


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet"])
def test_initial_weights_follow_the_names_of_classes(kind: str, tmp_path: Path) -> None:
    """A run of the time of lexical order can be continued in natural order: each output keeps its class."""
    import torch

    from smallalign_core import networks

    spec = parse({"data": "digits", "network": {"kind": kind, "width": 8, "depth": 1}})
    before, after = ("0", "1", "10", "2"), ("0", "1", "2", "10")
    old, new = (
        networks.build(spec.network, names, (1, 8, 8), mean=[0.5], std=[0.5], seed=seed).eval()
        for seed, names in enumerate((before, after))
    )
    (tmp_path / "weights.safetensors").write_bytes(networks.to_bytes(old, spec))
    networks.begin_from(new, tmp_path / "weights.safetensors")
    images = torch.from_numpy(DRAW.integers(0, 256, (5, 1, 8, 8), dtype=np.uint8))
    with torch.no_grad():
        was, now = old(images), new(images)
    for name in before:
        assert torch.equal(was[:, before.index(name)], now[:, after.index(name)])


# --- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_data_page_asks_for_the_column_of_labels(shown: Any, root: Path) -> None:
    rows = [["img", "kind", "coat"], *([f"images/{at}.png", ANIMALS[at % 3], "ab"[at % 2]] for at in range(COUNT))]
    file = written(root / "t.csv", rows)
    app = shown("data", data=str(file))
    assert "several columns of the table may hold the labels" in texts(app).lower()
    next(field for field in app.text_input if field.label == "Label column").set_value("coat").run()
    assert not app.exception
    assert {metric.label: metric.value for metric in app.metric}["Classes"] == "2"
    assert "label is column coat" in texts(app)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "kept"), [(["images/0.png", "cat", "a"], True), (["../x.png", "dog", "a"], False)])
def test_an_upload_whose_column_must_be_named_is_kept(
    row: list[str], kept: bool, store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pages.ui.app import context
    from pages.ui.data import uploading
    from smallalign_core.service import handlers
    from smallalign_core.service.requests import Inspect

    monkeypatch.setattr(context, "read", lambda spec: handlers.inspect(store, Inspect(spec)))
    rows = [["img", "kind" if kept else "label", "coat"]]
    rows += [[f"images/{at}.png", ANIMALS[at % 3], "ab"[at % 2]] for at in range(COUNT)]
    written(root / "labels.csv", [*rows, row])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for one in sorted(root.rglob("*.*")):
            archive.write(one, one.relative_to(root))
    if not kept:
        with pytest.raises(BadData, match="with paths outside"):
            uploading.receive(store, "x.zip", packed.getvalue())
        assert uploads.kept(store) == []
        return
    source = uploading.receive(store, "x.zip", packed.getvalue())
    named = parse_data({"source": source, "columns": {"label": "coat"}})
    assert data.load(named, store.data_cache).classes == ("a", "b")
