"""What real people bring: odd files, layouts, names and metadata, by one set of rules for folder and zip."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import command
from PIL import Image, PngImagePlugin

from smallalign_core import data
from smallalign_core.analysis import data_quality
from smallalign_core.data import ImageSet, Splits, _names, _pixels
from smallalign_core.errors import BadData
from smallalign_core.runs.store import Run, Store
from smallalign_core.service import worker
from smallalign_core.spec import DataSpec, digest, parse
from smallalign_core.training.resolve import resolve

DRAW = np.random.default_rng(0)


def noise(width: int = 12, height: int = 12) -> Image.Image:
    return Image.fromarray(DRAW.integers(0, 256, (height, width, 3), dtype=np.uint8))


def folders(root: Path, names: Iterable[str], count: int = 8, ending: str = "png") -> Path:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            noise().save(root / name / f"{number}.{ending}")
    return root


def load(source: Path, cache: Path, **fields: object) -> Splits:
    return data.load(DataSpec(source=str(source), **fields), cache)  # type: ignore[arg-type]


def everything(splits: Splits) -> ImageSet:
    parts = (splits.train, splits.val, splits.test)
    paths = np.concatenate([part.paths for part in parts if part.paths is not None])
    images = np.concatenate([part.images[:] for part in parts])
    labels, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "ids"))
    return ImageSet(images, labels, ids, splits.classes, None, paths)


def image_of(splits: Splits, path: str) -> np.ndarray:
    whole = everything(splits)
    (row,) = [row for row in range(len(whole)) if whole.path(row) == path]
    return whole.images[row]


def packed(root: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(root))
    return to


def told(splits: Splits) -> str:
    return " | ".join(splits.notes)


# --- A: nothing vanishes ----------------------------------------------------------------------------------------------


def test_formats_of_scanners_and_phones_are_read_with_the_others(tmp_path: Path) -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    root = folders(tmp_path / "set", "ab")
    endings = ("tif", "tiff", "gif", "avif", "jfif", "heic", "ppm", "jp2", "jpe")
    kinds = {"jfif": "JPEG", "jpe": "JPEG", "heic": "HEIF", "jp2": "JPEG2000", "tif": "TIFF"}
    for ending in endings:
        noise(16, 16).resize((12, 12)).save(root / "a" / f"x.{ending}", kinds.get(ending, ending.upper()))
    splits = load(root, tmp_path / "cache")
    assert {f"a/x.{ending}" for ending in endings} <= {everything(splits).path(row) for row in range(25)}
    assert splits.unreadable == ()


def test_a_file_without_an_ending_is_what_it_holds(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    noise().save(root / "a" / "photo", "JPEG")
    noise().save(root / "a" / "scan.jpg_large", "JPEG")
    noise().save(root / "b" / "y.JPG.jpg", "PNG")
    (root / "b" / "notes").write_bytes(b"no image")
    splits = load(root, tmp_path / "cache")
    assert len(everything(splits)) == 19
    assert "1 file of other kinds in class folders was left out (1 no ending): b 1" in told(splits)
    assert "another format than their file extension (b/y.JPG.jpg)" in told(splits)


@pytest.mark.parametrize("ending", [".dcm", ".svg", ".psd", ".cr2", ""])
def test_a_class_of_files_that_are_not_read_is_refused_by_name(ending: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    (root / "ship").mkdir()
    for number in range(5):
        (root / "ship" / f"{number}{ending}").write_bytes(b"other" * 9)
    with pytest.raises(BadData, match=r"class would be lost.*ship: 5 (\.\w+|no ending)"):
        load(root, tmp_path / "cache")


def test_what_is_no_class_is_counted_and_not_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    (root / "annotations").mkdir()
    (root / "annotations" / "0.xml").write_text("<x/>")
    (root / "README.md").write_text("hello")
    (root / "c").mkdir()
    noise().save(root / "loose.png")
    splits = load(root, tmp_path / "cache")
    assert splits.classes == ("a", "b")
    for words in ("1 .xml", "1 .md", "loose.png", "Empty folders are no classes: c"):
        assert words in told(splits)


def test_a_class_whose_last_image_is_damaged_is_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab", 150)
    (root / "c").mkdir()
    (root / "c" / "only.png").write_bytes((root / "a" / "0.png").read_bytes()[:60])
    with pytest.raises(BadData, match=r"class would be lost.*c in train/; c/only\.png"):
        load(root, tmp_path / "cache")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_named_and_never_opened(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    os.mkfifo(root / "a" / "x.png")
    (root / "b" / "nowhere.png").symlink_to(tmp_path / "gone")
    os.mkfifo(root / "b" / "notes.txt")
    with pytest.raises(
        BadData, match=r"2 of 18 images cannot be read.*x\.png: the path is a pipe.*nowhere\.png: no such file"
    ):
        load(root, tmp_path / "cache")
    splits = load(root, tmp_path / "cache", skip_unreadable=True)
    assert len(everything(splits)) == 16
    assert splits.unreadable == ("a/x.png", "b/nowhere.png")
    assert "1 file of other kinds in class folders" in told(splits)


# --- B: layouts -------------------------------------------------------------------------------------------------------

PAIRS = [
    ("Training", "Testing"),
    ("training_set", "test_set"),
    ("seg_train", "seg_test"),
    ("Training Data", "Test Data"),
    ("asl_alphabet_train", "asl_alphabet_test"),
    ("TRAIN", "holdout"),
    ("train", "eval"),
    ("train-images", "hold-out"),
]


@pytest.mark.parametrize(("train", "test"), PAIRS, ids=[train for train, _ in PAIRS])
def test_parts_by_longer_names(train: str, test: str, tmp_path: Path) -> None:
    folders(tmp_path / "set" / train, "ab", 10)
    folders(tmp_path / "set" / test, "ab", 4)
    splits = load(tmp_path / "set", tmp_path / "cache")
    assert (splits.classes, len(splits.test), len(splits.train) + len(splits.val)) == (("a", "b"), 8, 20)


@pytest.mark.parametrize("val", ["dev", "valid", "Validation Set"])
def test_validation_by_longer_names(val: str, tmp_path: Path) -> None:
    for part in ("train", val, "test"):
        folders(tmp_path / "set" / part, "ab", 6)
    assert [len(part) for part in _three(load(tmp_path / "set", tmp_path / "cache"))] == [12, 12, 12]


def _three(splits: Splits) -> tuple[ImageSet, ImageSet, ImageSet]:
    return splits.train, splits.val, splits.test


@pytest.mark.parametrize(
    "names",
    [("car", "truck", "train"), ("test", "control"), ("valid", "invalid"), ("val", "tin"), ("dev", "prod", "test")],
)
def test_a_folder_that_holds_images_is_a_class_whatever_it_is_called(names: tuple[str, ...], tmp_path: Path) -> None:
    splits = load(folders(tmp_path / "set", names), tmp_path / "cache")
    assert splits.classes == tuple(sorted(names))


@pytest.mark.parametrize("around", ["dataset", "train", "train/train", "asl_train/asl_train", "a/b/c", "training data"])
def test_single_folders_around_everything(around: str, tmp_path: Path) -> None:
    folders(tmp_path / "set" / around, ("cat", "dog"))
    splits = load(tmp_path / "set", tmp_path / "cache")
    assert splits.classes == ("cat", "dog")
    zipped = load(packed(tmp_path / "set", tmp_path / "set.zip"), tmp_path / "cache")
    assert zipped.fingerprint == splits.fingerprint


def test_a_folder_around_parts_that_is_called_like_one(tmp_path: Path) -> None:
    folders(tmp_path / "set" / "training pictures" / "train", "ab", 6)
    folders(tmp_path / "set" / "training pictures" / "test", "ab", 4)
    assert len(load(tmp_path / "set", tmp_path / "cache").test) == 8


@pytest.mark.parametrize("tops", [("fold_0", "fold_1", "fold_2"), ("batch1", "batch2"), ("healthy", "ill")])
def test_folders_that_all_hold_the_same_sub_folders_are_asked_about(tops: tuple[str, ...], tmp_path: Path) -> None:
    for top in tops:
        folders(tmp_path / "set" / top, ("left", "right"), 4)
    with pytest.raises(BadData, match=rf"classes or parts.*{tops[0]}.*left, right.*folder train/"):
        load(tmp_path / "set", tmp_path / "cache")
    (tmp_path / "answer").mkdir()
    (tmp_path / "set").rename(tmp_path / "answer" / "train")  # the way out that it names
    assert load(tmp_path / "answer", tmp_path / "cache").classes == tops


def test_a_class_called_train_among_others_inside_train(tmp_path: Path) -> None:
    folders(tmp_path / "set" / "train", ("car", "train"), 6)
    folders(tmp_path / "set" / "test", ("car", "train"), 4)
    assert load(tmp_path / "set", tmp_path / "cache").classes == ("car", "train")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("filename,label\n{}.png,{}\n", "labels.csv"),
        ("id;breed\n{};{}\n", "labels.csv"),
        ("images/{}.png\t{}\n", "labels.csv"),
        ("\ufeffx,Image,Class\n1,{}.png,{}\n", "labels.csv"),
    ],
    ids=["plain", "semicolons without endings", "tabs without a head", "three columns and a mark"],
)
def test_labels_in_a_table(text: str, note: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", ["images"], 20)
    head, line = text.split("\n")[0] + "\n" if text.count("\n") > 1 else "", text.split("\n")[-2] + "\n"
    rows = "".join(line.format(number, ("cat", "dog")[number % 2]) for number in range(18))
    (root / "labels.csv").write_text(head + rows, encoding="utf-8")
    splits = load(root, tmp_path / "cache")
    assert (splits.classes, len(everything(splits))) == (("cat", "dog"), 18)
    assert f"Labels were read from {note}" in told(splits)
    assert "2 images have no row" in told(splits)
    assert load(packed(root, tmp_path / "set.zip"), tmp_path / "cache").fingerprint == splits.fingerprint


def test_a_table_that_gives_two_labels_is_refused(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", ["images"], 4)
    (root / "labels.csv").write_text("file,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n0.png,b\n")
    with pytest.raises(BadData, match=r"two labels.*images/0\.png is a and b"):
        load(root, tmp_path / "cache")


# --- C: what 8 bits and squares lose ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ink", "mode", "ground"), [(0, "RGBA", 255), (255, "RGBA", 0), (0, "LA", 255), (90, "RGBA", 255), (0, "P", 255)]
)
def test_transparent_ground_keeps_the_drawing_visible(ink: int, mode: str, ground: int, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    drawn = np.zeros((12, 12, 4), np.uint8)
    drawn[3:9, 3:9] = (ink, ink, ink, 255)
    picture = Image.fromarray(drawn)
    if mode == "P":
        flat = Image.fromarray((drawn[..., 3] > 0).astype(np.uint8), "P")
        flat.putpalette([9, 9, 9, ink, ink, ink])
        flat.save(root / "a" / "x.png", transparency=0)
    else:
        picture.convert(mode).save(root / "a" / "x.png")
    splits = load(root, tmp_path / "cache")
    found = image_of(splits, "a/x.png")
    assert (found[0, 5, 5], found[0, 0, 0]) == (ink, ground)
    assert ("put on white" if ground else "put on black") in told(splits)
    one = data.decode_one((root / "a" / "x.png").read_bytes(), (3, 12, 12))
    assert np.array_equal(one, found)


@pytest.mark.parametrize(
    ("values", "form", "wanted", "note"),
    [
        (np.array([0, 1000, 4095], np.uint16), "png", [0, 1000 >> 4, 255], "use 12 bits"),
        (np.array([0, 40_000, 65_535], np.uint16), "png", [0, 40_000 >> 8, 255], "use 16 bits"),
        (np.array([0, 512, 1023], np.uint16), "tif", [0, 128, 255], "use 10 bits"),
        (np.array([0, 0.5, 1], np.float32), "tif", [0, 128, 255], "fractions from 0 to 1"),
        (np.array([-10, 0, 30], np.float32), "tif", [0, 64, 255], "values from -10 to 30"),
        (np.array([0, 70_000, 131_071], np.int32), "tif", [0, 70_000 >> 9, 255], "use 17 bits"),
    ],
    ids=["12 bits", "16 bits", "10-bit TIFF", "fractions", "negative", "32 bits"],
)
def test_grey_of_more_than_8_bits_is_scaled_by_the_whole_set(
    values: np.ndarray, form: str, wanted: list[int], note: str, tmp_path: Path
) -> None:
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(8):
            array = DRAW.choice(values[:2], (12, 12)).astype(values.dtype)  # the largest is in one image alone
            array[0, 0] = values[2] if (label, number) == ("a", 0) else array[0, 0]
            Image.fromarray(array).save(tmp_path / "set" / label / f"{number}.{form}")
    splits = load(tmp_path / "set", tmp_path / "cache")
    assert splits.shape == (1, 12, 12)
    assert sorted(set(everything(splits).images.ravel().tolist())) == wanted
    assert note in told(splits)


def test_what_a_square_cuts_is_said(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    noise(1200, 30).save(root / "a" / "panorama.png")
    noise(12, 48).save(root / "b" / "page.png")
    splits = load(root, tmp_path / "cache")
    assert "the longest 98%" in told(splits)
    assert "the longest 98%" in told(load(root, tmp_path / "cache", size=8))


def test_only_the_first_page_of_several_is_used_and_said(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    first = noise()
    first.save(root / "a" / "x.tif", save_all=True, append_images=[noise(), noise()])
    first.save(root / "a" / "x.webp", save_all=True, append_images=[noise()], lossless=True)
    splits = load(root, tmp_path / "cache")
    for name in ("a/x.tif", "a/x.webp"):
        assert np.array_equal(image_of(splits, name).transpose(1, 2, 0), np.asarray(first))
    assert "2 images have several frames or pages: the first was used (a/x.tif, a/x.webp)" in told(splits)


# --- D: what stands beside the pixels ---------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ wrong)


def with_chunk(file: Path, extra: bytes, *, last: bool = False) -> None:
    content = file.read_bytes()
    at = content.index(b"IEND") - 4 if last else 33
    file.write_bytes(content[:at] + extra + content[at:])


def test_pngs_with_odd_metadata_are_read(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    plain = {file.name: np.asarray(Image.open(file)) for file in (root / "a").iterdir()}
    long = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * 3_000_000))
    with_chunk(root / "a" / "0.png", long)
    with_chunk(root / "a" / "1.png", long, last=True)
    with_chunk(root / "a" / "2.png", chunk(b"tEXt", b"k\0v", wrong=1))
    with_chunk(root / "a" / "3.png", chunk(b"iCCP", b"icc\0\0" + b"no zlib"))
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x>" + "y" * 2_000_000 + "</x>", zip=True)
    noise().save(root / "a" / "xmp.png", pnginfo=text)
    splits = load(root, tmp_path / "cache")
    assert splits.unreadable == ()
    for name, pixels in plain.items():
        assert np.array_equal(image_of(splits, f"a/{name}").transpose(1, 2, 0), pixels)
    assert "damaged or too long metadata: it was skipped" in told(splits)


def test_orientation_alone_is_read_and_zero_denominators_cost_nothing(tmp_path: Path) -> None:
    from PIL.TiffImagePlugin import IFDRational

    root = folders(tmp_path / "set", "ab")
    half = Image.new("RGB", (12, 12), "black")
    half.paste("white", (0, 0, 12, 6))
    exif = half.getexif()
    exif[0x0112], exif[0x011A] = 6, IFDRational(1, 0)
    half.save(root / "a" / "x.jpg", exif=exif, quality=95)
    half.save(root / "a" / "broken.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 30)
    splits = load(root, tmp_path / "cache")
    assert splits.unreadable == ()
    assert image_of(splits, "a/x.jpg")[:, :, 10].min() > 200  # the upper half is on the right when upright


@pytest.mark.slow
@pytest.mark.parametrize("progressive", [False, True])
def test_a_phones_50_megapixels_are_scaled_while_decoding(progressive: bool, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    photo = Image.new("RGB", (8160, 6120), "white")
    photo.paste("red", (0, 0, 8160, 3060))
    photo.save(root / "a" / "photo.jpg", progressive=progressive)
    splits = load(root, tmp_path / "cache")
    assert splits.unreadable == ()
    assert image_of(splits, "a/photo.jpg")[1, 2, 5] < 20
    assert image_of(splits, "a/photo.jpg")[1, 9, 5] > 235
    assert "1 image has more than 25 million pixels: they were scaled down while decoding" in told(splits)


def test_every_unreadable_file_has_a_reason_and_all_can_be_left_out(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab", 10)
    noise(40, 40).save(root / "a" / "cut.jpg")
    cut = (root / "a" / "cut.jpg").read_bytes()
    bad = {
        "cut.jpg": (cut[: len(cut) // 2], "cut short"),
        "empty.png": (b"", "empty"),
        "page.jpg": (b"<!DOCTYPE html><html>not found</html>", "HTML"),
        "doc.png": (b"%PDF-1.4", "PDF"),
        "junk.png": (b"\1\2\3" * 30, "not an image"),
    }
    for name, (content, _) in bad.items():
        (root / "a" / name).write_bytes(content)
    with pytest.raises(BadData, match="5 of 25 images cannot be read") as refused:
        load(root, tmp_path / "cache")
    listed = {one["path"]: one["reason"] for one in refused.value.details["unreadable"]}
    assert listed.keys() == {f"a/{name}" for name in bad}
    assert all(reason in listed[f"a/{name}"] for name, (_, reason) in bad.items())
    splits = load(root, tmp_path / "cache", skip_unreadable=True)
    assert dict(zip(splits.unreadable, splits.reasons, strict=True)) == listed
    with pytest.raises(BadData, match="cannot be read"):  # what was once left out is not so for ever
        load(root, tmp_path / "cache")


# --- E: folder and zip ------------------------------------------------------------------------------------------------


def refused(source: Path, cache: Path) -> str:
    with pytest.raises(BadData) as error:
        load(source, cache)
    return str(error.value).replace(".zip", "").replace("The zip", "The folder")


@pytest.mark.parametrize("what", ["strangers", "unreadable", "twins", "beside", "no classes", "lost"])
def test_a_zip_is_refused_in_the_words_of_the_folder(what: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "set" / "train", "ab", 4).parent
    if what == "strangers":
        folders(root / "test", "abz", 2)
    elif what == "unreadable":
        (root / "train" / "a" / "IMG_0001.jpg").write_bytes(b"\xff\xd8\xff")
    elif what == "twins":
        folders(folders(root / "val", "ab", 2).parent / "valid", "ab", 2)
    elif what == "beside":
        folders(root / "more", "ab", 2)
    elif what == "no classes":
        shutil.rmtree(root / "train")
        noise().save(root / "x.png")
    else:
        (root / "train" / "c").mkdir()
        (root / "train" / "c" / "x.dcm").write_bytes(b"x")
    said = refused(root, tmp_path / "cache")
    assert refused(packed(root, tmp_path / "set.zip"), tmp_path / "cache") == said
    for word in {"strangers": ["z"], "unreadable": ["train/a/IMG_0001.jpg"], "lost": ["train/c: 1 .dcm"]}.get(what, []):
        assert word in said


def test_a_zip_counts_the_files_that_are_used(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    noise().save(root / "loose.png")
    splits = load(packed(root, tmp_path / "set.zip"), tmp_path / "cache")
    assert "16 files were read from the zip" in told(splits)
    assert "1 image outside the class folders" in told(splits)
    assert [everything(splits).path(row) for row in range(16)] != []
    assert {everything(splits).path(row) for row in range(16)} == {f"{c}/{n}.png" for c in "ab" for n in range(8)}


# --- F: names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "page", "read"),
    [
        ("猫狗", "gbk", "猫狗"),
        ("ねこ", "cp932", "ねこ"),
        ("кошка", "cp866", "кошка"),
        ("été", "cp437", "été"),
        ("Käfer", "utf-8", "Käfer"),
    ],
)
def test_zip_names_in_a_local_code_page(name: str, page: str, read: str, tmp_path: Path) -> None:
    raw = name.encode(page)
    place = "x" * len(raw)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for label in ("cat", place):
            for number in range(8):
                content = io.BytesIO()
                noise().save(content, "PNG")
                archive.writestr(f"{label}/{number}.png", content.getvalue())
    (tmp_path / "set.zip").write_bytes((tmp_path / "set.zip").read_bytes().replace(place.encode() + b"/", raw + b"/"))
    splits = load(tmp_path / "set.zip", tmp_path / "cache")
    assert splits.classes == ("cat", read) or splits.classes == (read, "cat")
    assert ("not UTF-8" in told(splits)) == (page != "utf-8")


def test_folder_names_that_are_not_utf_8(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", ["cat", "dog"])
    (root / "dog").rename(os.fsdecode(os.fsencode(root) + b"/" + "猫狗".encode("gbk")))
    splits = load(root, tmp_path / "cache")
    assert splits.classes == ("cat", "猫狗")
    assert "read as GBK" in told(splits)


def test_backslashes_are_separators_where_there_are_no_others(tmp_path: Path) -> None:
    root = folders(tmp_path / "set" / "train", "ab").parent
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            info = zipfile.ZipInfo("x")
            info.filename = str(file.relative_to(root)).replace("/", "\\")
            archive.writestr(info, file.read_bytes())
    assert load(tmp_path / "set.zip", tmp_path / "cache").fingerprint == load(root, tmp_path / "cache").fingerprint


@pytest.mark.parametrize("name", ["Felis sp.", "aux", "con", "space ", "a|b"])
def test_names_that_windows_does_not_like_are_classes_in_ones_own_zip(name: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", ["cat", name])
    zipped = load(packed(root, tmp_path / "set.zip"), tmp_path / "cache")
    assert zipped.fingerprint == load(root, tmp_path / "cache").fingerprint
    assert name in zipped.classes


def test_one_name_however_its_letters_are_composed(tmp_path: Path) -> None:
    folders(tmp_path / "set" / "train", [unicodedata.normalize("NFC", "été"), "chat"], 8)
    folders(tmp_path / "set" / "test", [unicodedata.normalize("NFD", "été"), "chat"], 4)
    splits = load(tmp_path / "set", tmp_path / "cache")
    assert splits.classes == ("chat", unicodedata.normalize("NFC", "été"))


def test_the_nearest_class_is_named(tmp_path: Path) -> None:
    folders(tmp_path / "set" / "train", ["Cat", "dog"])
    folders(tmp_path / "set" / "test", ["cat", "dog"])
    with pytest.raises(BadData, match=r"cat \(train/ has Cat\)"):
        load(tmp_path / "set", tmp_path / "cache")


def test_control_characters_of_a_name_are_never_shown(tmp_path: Path) -> None:
    splits = load(folders(tmp_path / "set", ["a\n\x1b[31mb", "c\u202ed"]), tmp_path / "cache")
    assert splits.classes == ("a\ufffd\ufffd[31mb", "c\ufffdd")


def test_natural_order_of_names() -> None:
    assert sorted(["b10", "B2", "a", "10", "9"], key=data.natural) == ["9", "10", "a", "B2", "b10"]


# --- J: siblings, thumbnails, groups ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["@eaDir", "$RECYCLE.BIN", "#recycle", ".thumbnails", "__MACOSX", "@Recycle"])
def test_thumbnails_of_systems_are_none_of_the_users_images(name: str, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    before = load(root, tmp_path / "cache").fingerprint
    (root / "a" / name / "0.png").mkdir(parents=True)
    noise(5, 5).save(root / "a" / name / "0.png" / "SYNOPHOTO_THUMB_M.png")
    after = load(root, tmp_path / "cache")
    assert after.fingerprint == before
    assert (name in told(after)) == (not name.startswith("."))
    assert load(packed(root, tmp_path / "set.zip"), tmp_path / "cache").fingerprint == before


def siblings(root: Path, form: str, count: int = 20) -> Path:
    for label in "ab":
        (root / label).mkdir(parents=True)
        for person in range(count):
            for shot in range(3):
                noise().save(root / label / form.format(person=person, shot=shot))
    return root


@pytest.mark.parametrize(
    "form", ["cat{person}_rot{shot}.png", "cat{person} ({shot}).png", "c{person}_jpg.rf.0a1b2c3d4{shot}.png"]
)
def test_versions_of_an_image_on_both_sides_are_warned_of(form: str, tmp_path: Path) -> None:
    splits = load(siblings(tmp_path / "set", form), tmp_path / "cache")
    assert "test images are versions of training images" in told(splits)


def test_plain_numbers_are_no_versions(tmp_path: Path) -> None:
    folders(tmp_path / "set" / "train", "ab")
    folders(tmp_path / "set" / "test", "ab", 4)
    assert "versions" not in told(load(tmp_path / "set", tmp_path / "cache"))


@pytest.mark.parametrize("way", ["pattern", "table", "path"])
def test_one_group_is_on_one_side(way: str, tmp_path: Path) -> None:
    form = "p{person}/{shot}.png" if way == "path" else "p{person}_{shot}.png"
    root = tmp_path / "set" / "train"
    for label in "ab":
        for person in range(20):
            (root / label / f"p{person}").mkdir(parents=True)
            for shot in range(3):
                noise().save(root / label / form.format(person=person, shot=shot))
    groups = {"pattern": "{group}_*", "table": "groups.csv", "path": "train/*/{group}/*"}[way]
    if way == "table":
        rows = [f"train/{label}/p{p}_{s}.png,p{p}" for label in "ab" for p in range(20) for s in range(3)]
        (tmp_path / "set" / "groups.csv").write_text("filename,patient\n" + "\n".join(rows))
    splits = load(tmp_path / "set", tmp_path / "cache", groups=groups)

    def people(part: ImageSet) -> set[str]:
        return {str(part.path(row)).split("/")[2].split("_")[0] for row in range(len(part))}

    train, val, test = map(people, _three(splits))
    assert train | val | test == {f"p{person}" for person in range(20)}
    assert not train & val
    assert not (train | val) & test
    assert "20 groups by" in told(splits)
    alone = load(tmp_path / "set", tmp_path / "cache")
    assert people(alone.train) & people(alone.test), "without groups they meet: else this shows nothing"


def test_groups_and_equal_images_keep_each_other_together(tmp_path: Path) -> None:
    root = siblings(tmp_path / "set", "p{person}_{shot}.png")
    for person in range(19):  # an image of each person is also one of the next
        shutil.copy(root / "a" / f"p{person}_0.png", root / "a" / f"p{person + 1}_9.png")
    with pytest.raises(BadData, match=r"too few different images.*images of one group count as one"):
        load(root, tmp_path / "cache", groups="{group}_*")


@pytest.mark.parametrize(
    ("pattern", "text", "group"),
    [
        ("{group}_*", "anna_01.png", "anna"),
        ("{group}_*", "anna.png", None),
        ("*_{group}_*.png", "x_p7_3.png", "p7"),
        ("img-{group}.png", "img-5.png", "5"),
        ("{group}.rf.*", "a_jpg.rf.01.jpg", "a_jpg"),
        ("*/{group}/*", "train/p1/x/y.png", "p1"),
    ],
)
def test_what_stands_for_the_group(pattern: str, text: str, group: str | None) -> None:
    from smallalign_core.data._groups import matcher

    assert matcher(pattern)(text) == group


def test_specs_without_the_new_fields_keep_their_digest() -> None:
    plain = {"data": {"source": "digits"}, "network": "cnn"}
    assert digest(parse(plain)) == digest(parse({**plain, "data": {"source": "digits", "groups": None}}))
    assert digest(parse({**plain, "data": {"source": "digits", "groups": "{group}_*"}})) != digest(parse(plain))


# --- the command line -------------------------------------------------------------------------------------------------


def run_on(root: Path, store: Store) -> Run:
    spec = parse({"data": str(root), "network": {"kind": "cnn", "width": 4, "depth": 2}, "epochs": 1, "batch": 8})
    run = store.create(resolve(store, spec))
    worker.execute(run, store, device="cpu")
    return run


@pytest.mark.slow
def test_a_run_goes_on_where_its_images_are_now(store: Store, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab", 12)
    run = run_on(root, store)
    assert command("export", run.id, "--to", tmp_path / "m.onnx", store=store).returncode == 0
    root.rename(tmp_path / "moved")
    lost = command("export", run.id, "--to", tmp_path / "n.onnx", "--precision", "int8", store=store)
    assert lost.returncode == 2
    assert "--data" in lost.stderr
    for words in (
        ("export", run.id, "--to", tmp_path / "n.onnx", "--precision", "int8"),
        ("compare", run.id, run.id),
    ):
        done = command(*words, "--data", tmp_path / "moved", store=store)
        assert done.returncode == 0, done.stderr
        assert "note: The images were found in" in done.stderr
    alone = Store(tmp_path / "another")
    found = command("verify", tmp_path / "m.onnx", store=alone)
    assert found.returncode == 0, found.stderr
    assert "checksum ok" in found.stdout
    assert "accuracy was not checked" in found.stdout
    content = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(content.replace(b"probabilities", b"probabilitiez"))
    assert command("verify", tmp_path / "m.onnx", store=alone).returncode == 2


def test_evaluate_uses_all_of_ones_own_pictures_but_those_learned_from(store: Store, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "abc", 20)
    run = run_on(root, store)
    own = folders(tmp_path / "own", "ab", 10)
    (own / "a" / "lonely").mkdir()
    found = json.loads(command("evaluate", run.id, "--data", own, "--json", store=store).stdout)
    assert found["images"] == 20
    assert found["recall"].keys() == {"a", "b", "c"}  # right among all classes that the run may name
    assert found["recall"]["c"] is None
    splits = data.load(run.data, store.data_cache)
    for row in range(3):
        shutil.copy(root / str(splits.train.path(row)), own / "a" / f"copy{row}.png")
    again = json.loads(command("evaluate", run.id, "--data", own, "--json", store=store).stdout)
    assert again["images"] == 20
    assert any("3 images were excluded" in note for note in again["notes"])
    same = json.loads(
        command("evaluate", run.id, "--data", shutil.copytree(root, tmp_path / "copy"), "--json", store=store).stdout
    )
    assert same["images"] == len(splits.test)


def test_a_class_that_is_never_right_is_named_under_the_accuracy() -> None:
    from smallalign_core.metrics import zero_recall_classes

    assert zero_recall_classes({"a": 1.0, "rare": 0.0, "b": None}) == "zero recall on: rare"
    assert zero_recall_classes({"a": 0.2, "b": None}) == ""


def test_inspect_loads_once_names_files_and_says_how_far_it_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, copied = folders(tmp_path / "set", "ab", 40), range(10)  # some are learned from, others held out
    for number in copied:
        shutil.copy(root / "a" / f"{number}.png", root / "a" / f"copy{number}.png")
    loads, load_it = [], data.load
    monkeypatch.setattr(data, "load", lambda *given, **how: loads.append(given) or load_it(*given, **how))
    done = command("inspect", root, "--json", "--decide", tmp_path / "made.json", store=store)
    assert len(loads) <= 2  # what is in it, and the look
    assert "checking data quality: 10%" in done.stderr
    assert "checking data quality: 100%" in done.stderr
    found = json.loads(done.stdout)
    pairs = {frozenset((f"a/{number}.png", f"a/copy{number}.png")) for number in copied}
    assert {frozenset(image["path"] for image in group["images"]) for group in found["duplicates"]} == pairs
    made = [one for one in json.loads((tmp_path / "made.json").read_text())["decisions"] if one["what"] == "once"]
    assert made
    assert {one["path"] for one in made} <= frozenset().union(*pairs)
    assert "a/copy" in command("inspect", root, store=store).stdout


def test_a_look_in_steps_loads_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, loads, load_it = folders(tmp_path / "set", "ab", 40), [], data.load
    monkeypatch.setattr(data, "load", lambda *given, **how: loads.append(given) or load_it(*given, **how))
    reports, spec = 0, DataSpec(source=str(root))
    while (found := data_quality.quality(store, spec, patience=0.0))[0] is None:
        reports += 1
        assert 0 <= found[1] < 1
    assert reports > 3
    assert len(loads) == 1


def test_unreadable_files_come_as_json(store: Store, tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab", 10)
    for number in range(5):
        (root / "a" / f"bad{number}.jpg").write_bytes(b"\xff\xd8\xff")
    done = command("inspect", root, "--json", store=store)
    assert done.returncode == 2
    assert {one["path"] for one in json.loads(done.stdout)["unreadable"]} == {f"a/bad{n}.jpg" for n in range(5)}
    assert len(done.stderr.splitlines()) == 1
    assert command("inspect", root, "--set", "skip_unreadable=true", store=store).returncode == 0


# --- runs of before, and memory ---------------------------------------------------------------------------------------


def test_a_run_of_before_still_finds_its_images(tmp_path: Path) -> None:
    """A set that would now be read in another way (TIFFs, transparency) is read as it was for who remembers it so."""
    root = folders(tmp_path / "set", "ab", 10)
    noise().save(root / "a" / "more.tif")
    clear = np.zeros((12, 12, 4), np.uint8)
    clear[3:9, 3:9] = (0, 0, 90, 255)
    Image.fromarray(clear).save(root / "b" / "clear.png")
    from smallalign_core.data import _as_before, _stored
    from smallalign_core.data._division import divide

    spec = DataSpec(source=str(root))
    facts, stored = _stored(spec, tmp_path / "cache", 10**9, old=True)
    before = divide(stored, spec, facts)
    assert len(everything(before)) == 21
    assert image_of(before, "b/clear.png")[:, 0, 0].max() == 0  # on black
    now = load(root, tmp_path / "cache")
    assert now.fingerprint != before.fingerprint
    assert load(root, tmp_path / "cache", fingerprint=before.fingerprint).fingerprint == before.fingerprint
    assert "as they were before" in told(load(root, tmp_path / "cache", fingerprint=before.fingerprint))
    assert load(root, tmp_path / "cache", fingerprint=now.fingerprint).fingerprint == now.fingerprint
    assert (
        _as_before(spec.model_copy(update={"fingerprint": "0" * 16}), tmp_path / "cache", 10**9, facts, stored) is None
    )


def test_moved_images_are_known_by_their_fingerprint_and_remembered(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab")
    spec = DataSpec(source=str(root), fingerprint=load(root, tmp_path / "cache").fingerprint)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(BadData, match="--data"):
        data.load(spec, tmp_path / "cache")
    with (
        pytest.raises(BadData, match="do not match the fingerprint"),
        data.found_at(str(folders(tmp_path / "other", "ab"))),
    ):
        data.load(spec, tmp_path / "cache")
    with data.found_at(str(tmp_path / "elsewhere")) as notes:
        assert data.load(spec, tmp_path / "cache").fingerprint == spec.fingerprint
    assert "elsewhere" in notes[0]
    again = data.load(spec, tmp_path / "cache")  # whoever comes next need not name them
    assert again.fingerprint == spec.fingerprint
    assert "The images were found in" in told(again)


def test_decoding_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smallalign_core.data import _progress

    monkeypatch.setattr(_progress, "EVERY", 0.0)
    root, seen, spec = folders(tmp_path / "set", "ab"), [], DataSpec(source=str(tmp_path / "set"))

    def heard(done: int, total: int) -> None:
        seen.append((done, total))
        assert data.decoding(spec, tmp_path / "cache") == (done, total)  # so may any other process

    with data.watching(heard):
        load(root, tmp_path / "cache")
    assert seen == [(done, 16) for done in range(1, 17)]
    assert data.decoding(spec, tmp_path / "cache") is None


def test_photographs_are_mapped_and_never_read_whole(tmp_path: Path) -> None:
    root = folders(tmp_path / "set", "ab", 20)
    mapped = data.load(DataSpec(source=str(root)), tmp_path / "cache", ram_budget=100)
    assert not isinstance(mapped.train.images, np.ndarray)
    assert data.RAM_BUDGET <= 512 * 1024**2


def test_hostile_images_keep_their_limits(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.ppm"
    bomb.write_bytes(b"P3\n3000 3000\n255\n" + b"0 " * 100)  # numbers as text take minutes
    for content in (bomb, tmp_path / "x.jp2"):
        if content.suffix == ".jp2":
            Image.new("L", (5000, 4000)).save(content)
        with pytest.raises(_pixels.Unreadable, match="million pixels"):
            _pixels.header(content)


def test_page_names(tmp_path: Path) -> None:
    assert _names.as_text([b"cat", "naïve".encode("cp437")])[1] == "cp437"
    assert _names.as_text([b"cat"]) == (["cat"], None)
