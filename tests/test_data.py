"""Datasets: every source a user may bring, and every way in which one may be broken."""

from __future__ import annotations

import errno
import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from smallalign_core import data
from smallalign_core.data import ImageSet, Splits, _decode, _readers
from smallalign_core.errors import BadData, Refused
from smallalign_core.spec import DataSpec

FASHION = Path("/usr/share/datasets/fashion-mnist")


def load(source: Path | str, cache: Path, **fields: object) -> Splits:
    return data.load(DataSpec(source=str(source), **fields), cache)  # type: ignore[arg-type]


def folder_of(
    root: Path,
    classes: Iterable[str] = "ab",
    count: int = 12,
    size: tuple[int, int] = (10, 8),
    mode: str = "RGB",
    ending: str = "png",
) -> Path:
    """A folder per class with distinct images."""
    draw = np.random.default_rng(0)
    for label in classes:
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            array = draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(array).convert(mode).save(root / label / f"{number}.{ending}")
    return root


def write_idx(file: Path, array: np.ndarray) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    with gzip.open(file, "wb") if file.suffix == ".gz" else file.open("wb") as stream:
        stream.write(content)


def test_digits(digits: Splits) -> None:
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    assert digits.shape == (1, 8, 8)
    assert digits.train.images.max() == 255
    assert digits.train.images.dtype == np.uint8
    assert digits.train.labels.dtype == np.int64


def test_splits_are_stratified_disjoint_and_repeatable(digits: Splits, tmp_path: Path) -> None:
    sets = [set(part.ids.tolist()) for part in (digits.train, digits.val, digits.test)]
    assert len(set.union(*sets)) == sum(map(len, sets))
    for part, share in ((digits.test, 0.2), (digits.val, 0.08)):
        for count in part.counts().values():
            assert count / 179.7 == pytest.approx(share, abs=0.02)
    assert load("digits", tmp_path).fingerprint == digits.fingerprint


def test_images_limits_the_training_images_and_nothing_else(digits: Splits, decoded: Path) -> None:
    few = load("digits", decoded, images=105)
    assert len(few.train) == 105
    for name, count in few.train.counts().items():
        assert abs(count - 105 * digits.train.counts()[name] / len(digits.train)) <= 1
    more = load("digits", decoded, images=106)
    assert set(few.train.ids.tolist()) < set(more.train.ids.tolist())
    assert few.test.fingerprint == digits.test.fingerprint
    assert few.val.fingerprint == digits.val.fingerprint
    with pytest.raises(BadData, match="between 10"):
        load("digits", decoded, images=5)
    with pytest.raises(BadData, match=str(len(digits.train))):
        load("digits", decoded, images=100_000)


def test_equal_images_never_part(tmp_path: Path) -> None:
    """Exact duplicates are the commonest leak: held-out images must not stand in train too."""
    root = folder_of(tmp_path / "set", count=30)
    for number in range(30):
        (root / "a" / f"copy-{number}.png").write_bytes((root / "a" / f"{number}.png").read_bytes())
    splits = load(root, tmp_path / "cache", test=0.3, validation=0.3)
    train, val, test = (set(part.ids.tolist()) for part in (splits.train, splits.val, splits.test))
    assert len(train | val | test) == len(train) + len(val) + len(test)


def ids(images: ImageSet) -> set[int]:
    return set(images.ids.tolist())


def test_no_size_and_no_share_moves_a_test_image_into_train(digits: Splits, decoded: Path) -> None:
    """Runs that are compared, or taught by each other, at different sizes must not have seen each other's tests."""
    small, more = load("digits", decoded, size=12), load("digits", decoded, test=0.4)
    assert ids(small.test) == ids(digits.test)
    assert ids(small.val) == ids(digits.val)
    assert small.fingerprint != digits.fingerprint
    assert ids(digits.test) < ids(more.test)
    assert not ids(more.train) & ids(digits.test)


def test_a_folder_that_grows_is_another_dataset_and_still_stratified(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", "ab", 60)
    before = load(root, tmp_path / "cache")
    draw = np.random.default_rng(1)
    for number in range(40):
        array = draw.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(array).save(root / "a" / f"new-{number}.png")
    after = load(root, tmp_path / "cache")
    assert after.fingerprint != before.fingerprint
    assert after.test.counts() == {"a": 20, "b": 12}
    with pytest.raises(BadData, match="do not match the fingerprint"):
        load(root, tmp_path / "cache", fingerprint=before.fingerprint)


def test_equal_images_in_two_classes_never_part(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", count=30)
    for number in range(30):
        (root / "b" / f"copy-{number}.png").write_bytes((root / "a" / f"{number}.png").read_bytes())
    splits = load(root, tmp_path / "cache", test=0.3, validation=0.3)
    train, val, test = (ids(part) for part in (splits.train, splits.val, splits.test))
    assert len(train | val | test) == len(train) + len(val) + len(test)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_every_class_stands_on_every_side(share: float, tmp_path: Path) -> None:
    """Three images a class are enough for all three splits, however the hashes fall."""
    splits = load(folder_of(tmp_path / "set", "abcdefghij", 3), tmp_path / "cache", test=share, validation=share)
    for part in (splits.train, splits.val, splits.test):
        assert min(part.counts().values()) >= 1


def test_a_class_of_equal_images_is_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set")
    for file in (root / "b").iterdir():
        file.write_bytes((root / "b" / "0.png").read_bytes())
    with pytest.raises(BadData, match=r"too few different images.*b"):
        load(root, tmp_path / "cache")


def test_a_wrong_fingerprint_is_refused(decoded: Path) -> None:
    with pytest.raises(BadData, match="do not match the fingerprint"):
        load("digits", decoded, fingerprint="0" * 16)


def test_fingerprint_changes_with_one_pixel(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set")
    before = load(root, tmp_path / "cache").fingerprint
    image = np.array(Image.open(root / "a" / "0.png"))
    image[0, 0, 0] ^= 1
    Image.fromarray(image).save(root / "a" / "0.png")
    assert load(root, tmp_path / "cache").fingerprint != before


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_a_folder_of_classes(mode: str, channels: int, tmp_path: Path) -> None:
    splits = load(folder_of(tmp_path / "set", "cat", 10, mode=mode), tmp_path / "cache")
    assert splits.classes == ("a", "c", "t")
    assert splits.shape == (channels, 8, 10)
    first = np.array(Image.open(tmp_path / "set" / "a" / "0.png"))
    everything = np.concatenate([part.images for part in (splits.train, splits.val, splits.test)])
    assert any(np.array_equal(image.transpose(1, 2, 0).squeeze(), first) for image in everything)


def test_given_splits_are_kept(tmp_path: Path) -> None:
    for name, count in (("train", 12), ("val", 5), ("test", 7)):
        folder_of(tmp_path / "set" / name, count=count)
    splits = load(tmp_path / "set", tmp_path / "cache")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [24, 10, 14]


def test_mixed_sizes_are_resized_once_and_said(tmp_path: Path) -> None:
    folder_of(tmp_path / "set", "a", size=(20, 30))
    folder_of(tmp_path / "set", "b", size=(40, 16))
    splits = load(tmp_path / "set", tmp_path / "cache")
    assert splits.shape[1] == splits.shape[2] == 20
    assert any("2 sizes" in note and "20 pixels" in note for note in splits.notes)
    assert load(tmp_path / "set", tmp_path / "cache", size=12).shape == (3, 12, 12)


def test_odd_image_files(tmp_path: Path) -> None:
    """Palette, CMYK, 16-bit, transparency, animation and EXIF rotation: all become plain upright pixels."""
    root = folder_of(tmp_path / "set", "ab", 3, size=(10, 10))
    red = Image.new("RGB", (10, 10), "red")
    red.convert("P").save(root / "a" / "palette.png")
    red.convert("CMYK").save(root / "a" / "cmyk.jpg", quality=95)
    Image.fromarray(np.full((10, 10), 40_000, np.uint16)).save(root / "a" / "deep.png")
    Image.new("RGBA", (10, 10), (255, 0, 0, 0)).save(root / "a" / "clear.png")
    half = Image.new("RGB", (10, 10), "black")
    half.paste("white", (0, 0, 10, 5))
    exif = half.getexif()
    exif[0x0112] = 6  # turned: the white upper half is on the right when upright
    half.save(root / "b" / "turned.jpg", exif=exif, quality=95)
    splits = load(root, tmp_path / "cache")
    everything = np.concatenate([part.images for part in (splits.train, splits.val, splits.test)]).astype(int)

    def there(wanted: np.ndarray, within: int = 12) -> bool:
        return bool((np.abs(everything - wanted).max((1, 2, 3)) <= within).any())

    assert splits.unreadable == ()
    assert there(np.array([255, 0, 0]).reshape(3, 1, 1) * np.ones((3, 10, 10)))
    assert there(np.full((3, 10, 10), 40_000 >> 8))
    assert there(np.zeros((3, 10, 10)))
    assert there(255 * np.repeat((np.arange(10) >= 5)[None, None], 10, 1) * np.ones((3, 1, 1)), within=40)


def test_a_zip_of_a_folder_gives_the_same_images(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path))
    zipped, plain = load(tmp_path / "set.zip", tmp_path / "cache"), load(root, tmp_path / "cache")
    assert sorted(zipped.train.ids) == sorted(plain.train.ids)
    assert zipped.classes == plain.classes


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "C:/evil.png", "a\\..\\evil.png"])
def test_a_zip_that_climbs_out_is_refused_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = name  # the constructor would tidy it
        archive.writestr(info, (tmp_path / "set" / "a" / "0.png").read_bytes())
    with pytest.raises(BadData, match="leaves its folder"):
        load(tmp_path / "set.zip", tmp_path / "cache")
    assert not list(tmp_path.rglob("evil*"))
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_a_truncated_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in folder_of(tmp_path / "set").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path / "set"))
    whole = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadData):
        load(tmp_path / "set.zip", tmp_path / "cache")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damage_inside_a_zip(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w", method) as archive:
        for file in folder_of(tmp_path / "set", size=(40, 40)).rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path / "set"))
        start = archive.infolist()[0]
    content = bytearray((tmp_path / "set.zip").read_bytes())
    at = start.header_offset + 30 + len(start.filename) + (20 if method == zipfile.ZIP_LZMA else 0)
    content[at : at + 60] = b"\xff" * 60
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(BadData, match="zip file cannot be read"):
        load(tmp_path / "set.zip", tmp_path / "cache")


def test_what_systems_leave_behind_is_no_class_and_no_image(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set")
    before = load(root, tmp_path / "cache")
    for name in (".ipynb_checkpoints", "__MACOSX", "a/.ipynb_checkpoints"):
        (root / name).mkdir()
        (root / name / "0.png").write_bytes((root / "a" / "0.png").read_bytes())
    (root / "a" / "._0.png").write_bytes(b"Mac OS X        ")
    after = load(root, tmp_path / "cache")
    assert after.classes == ("a", "b")
    assert (after.fingerprint, after.unreadable) == (before.fingerprint, ())
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in sorted(root.rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path))
            archive.writestr(f"__MACOSX/{file.relative_to(tmp_path).parent}/._{file.name}", b"Mac OS X        ")
    zipped = load(tmp_path / "set.zip", tmp_path / "cache")
    assert (zipped.fingerprint, zipped.unreadable) == (before.fingerprint, ())
    assert any("24 files were read" in note for note in zipped.notes)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx(ending: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (60, 9, 7)), np.arange(60) % 3
    for stem, part in (("train", slice(0, 45)), ("t10k", slice(45, 60))):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte{ending}", images[part])
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{ending}", labels[part])
    splits = load(tmp_path, tmp_path / "cache")
    assert np.array_equal(splits.test.images[:, 0], images[45:])
    assert splits.test.labels.tolist() == labels[45:].tolist()
    assert len(splits.train) + len(splits.val) == 45


def test_idx_images_without_labels(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((4, 3, 3)))
    with pytest.raises(BadData, match="images without labels"):
        load(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("damage", ["cut", "empty", "huge", "other"])
def test_damaged_idx(damage: str, tmp_path: Path) -> None:
    images = tmp_path / "train-images-idx3-ubyte"
    write_idx(images, np.zeros((20, 3, 3)))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(20) % 2)
    whole = images.read_bytes()
    huge = struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31)
    images.write_bytes({"cut": whole[:-5], "empty": b"", "huge": huge, "other": b"\x89PNG" + whole}[damage])
    words = {"huge": "2147483648 images, 20 labels"}.get(damage, "not an IDX file")
    with pytest.raises(BadData, match=words):
        load(tmp_path, tmp_path / "cache")


def test_idx_headers_that_promise_too_much(tmp_path: Path) -> None:
    """The header alone decides what would be read into RAM: gzip makes terabytes of zeros out of nothing."""
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(20) % 2)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(struct.pack(">HBB3I", 0, 8, 3, 20, 2**15, 2**15))
    with pytest.raises(BadData, match="promises more than 8 GiB"):
        load(tmp_path, tmp_path / "cache")


def test_damaged_gzip(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.arange(20) % 2)
    packed = zlib.compressobj(wbits=31)
    whole = packed.compress(struct.pack(">HBB3I", 0, 8, 3, 20, 3, 3)) + packed.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(whole + b"\xff" * 200)
    with pytest.raises(BadData, match="not an IDX file"):
        load(tmp_path, tmp_path / "cache")


def spoil(root: Path, count: int) -> None:
    for number in range(count):
        file = root / "a" / f"{number}.png"
        file.write_bytes(file.read_bytes()[:40])


def test_a_few_unreadable_images_are_named_and_left_out(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", count=101)
    spoil(root, 2)
    splits = load(root, tmp_path / "cache")
    assert sorted(splits.unreadable) == ["a/0.png", "a/1.png"]
    assert any("a/0.png" in note for note in splits.notes)
    assert len(splits.train) + len(splits.val) + len(splits.test) == 200


def test_many_unreadable_images_are_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", count=20)
    spoil(root, 2)
    with pytest.raises(BadData, match=r"2 of 40 images cannot be read.*a/0\.png"):
        load(root, tmp_path / "cache")


@pytest.mark.slow
def test_a_bomb_is_unreadable_not_decoded(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", count=120)
    Image.new("1", (20_000, 20_000)).save(root / "a" / "bomb.png")
    assert load(root, tmp_path / "cache").unreadable == ("a/bomb.png",)


def test_tags_of_a_wrong_type_cost_no_image(tmp_path: Path) -> None:
    """Turning upright needs the orientation alone: one odd tag of a camera is no reason to lose its pictures."""
    root = folder_of(tmp_path / "set", count=120, ending="jpg")
    exif = Image.new("RGB", (10, 8)).getexif()
    exif[0x0112], exif[0x010E] = 6, "hello there"
    Image.new("RGB", (10, 8)).save(root / "a" / "odd.jpg", exif=exif)
    content = bytearray((root / "a" / "odd.jpg").read_bytes())
    content[content.index(b"Exif\0\0") + 6 + 11] = 0  # the description's tag becomes one that holds a number
    (root / "a" / "odd.jpg").write_bytes(content)
    splits = load(root, tmp_path / "cache")
    assert splits.unreadable == ()
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 241


def test_an_eps_named_png_never_reaches_ghostscript(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", count=60)
    Image.new("RGB", (10, 8)).save(root / "a" / "evil.eps")
    (root / "a" / "evil.eps").rename(root / "a" / "evil.png")
    Image.new("RGB", (10, 8)).save(root / "b" / "other.gif")
    (root / "b" / "other.gif").rename(root / "b" / "other.png")
    splits = load(root, tmp_path / "cache")
    assert splits.unreadable == ("a/evil.png",)
    assert "PostScript" in splits.reasons[0]
    assert any("another format" in note and "b/other.png" in note for note in splits.notes)


def test_turned_photographs_count_as_they_stand(tmp_path: Path) -> None:
    """One raw size, two orientations: not one size, so nothing may be cropped without a word."""
    root = folder_of(tmp_path / "set", count=12, size=(20, 10), ending="jpg")
    exif = Image.new("RGB", (1, 1)).getexif()
    exif[0x0112] = 6
    for file in (root / "a").iterdir():
        Image.open(file).save(file, exif=exif)
    splits = load(root, tmp_path / "cache")
    assert any("2 sizes" in note for note in splits.notes)
    assert splits.shape == (3, 10, 10)


def test_large_photographs_of_one_size_are_scaled_and_said(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", "ab", 4, size=(300, 240))
    splits = load(root, tmp_path / "cache")
    assert splits.shape == (3, 224, 224)
    assert any("300 x 240" in note and "224" in note for note in splits.notes)
    wanted = load(root, tmp_path / "cache", size=236)
    assert wanted.shape == (3, 236, 236)
    assert all(any("loses 20% of its area" in note for note in one.notes) for one in (splits, wanted))


@pytest.mark.parametrize("system", ["reserves", "knows no reserving"])
def test_a_full_disk_is_said_and_leaves_nothing(system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written through a map, a full disk would be a SIGBUS: the room must be there before the first image."""
    root = folder_of(tmp_path / "set")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if system == "reserves":
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
        load(root, tmp_path / "other")
        assert all(file.stat().st_blocks for file in (tmp_path / "other").rglob("*.images.npy"))
        monkeypatch.setattr(_decode, "bytes", full, raising=False)
    with pytest.raises(Refused, match="disk is full"):
        load(root, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


Make = Callable[[Path], Path | str]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: "no-such-set", "path does not exist"),
        (lambda p: p, "no class folders"),
        (lambda p: folder_of(p / "one", "a"), "at least two classes"),
        (lambda p: folder_of(p / "few", "ab", 2), "fewer than 3"),
        (lambda p: folder_of(p / "loose" / "x") / "a", "images without labels"),
        (lambda p: folder_of(p / "x" / "test").parent, "test/ but no train/"),
        (lambda p: folder_of(folder_of(p / "x" / "train").parent / "more").parent, r"beside train/.*more"),
        (lambda p: folder_of(folder_of(folder_of(p / "x" / "train").parent / "val").parent / "valid").parent, "same"),
        (lambda p: folder_of(folder_of(p / "x" / "train").parent, ["test"]), "test/ has images but no classes"),
        (lambda _: "~nosuchuser/x", "path cannot be used"),
        (lambda _: "x" * 900, "path cannot be used"),
        (lambda _: "a\0b", "path cannot be used"),
    ],
    ids=[
        *("unknown", "empty", "one class", "two images", "no labels", "no train", "stranger", "two vals", "flat test"),
        *("no such user", "long", "zero byte"),
    ],
)
def test_sources_that_cannot_be_used(make: Make, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=words):
        load(make(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_validation_by_any_name(name: str, tmp_path: Path) -> None:
    for part, count in (("Train", 12), (name, 5)):
        folder_of(tmp_path / "set" / part, count=count)
    splits = load(tmp_path / "set", tmp_path / "cache")
    assert (splits.classes, len(splits.val)) == (("a", "b"), 10)


def test_a_zip_of_nothing_but_test_images_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for file in folder_of(tmp_path / "set" / "test").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path))
    with pytest.raises(BadData, match="no train/"):
        load(tmp_path / "set.zip", tmp_path / "cache")


def test_a_change_behind_a_link_is_seen(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", "b")
    root = folder_of(tmp_path / "set", "a")
    (root / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (root / "a" / "round").symlink_to(root)  # a link to a folder that holds it must end
    before = load(root, tmp_path / "cache")
    Image.new("RGB", (10, 8), "red").save(tmp_path / "elsewhere" / "b" / "red.png")
    assert load(root, tmp_path / "cache").fingerprint != before.fingerprint


def test_classes_only_in_test_are_refused(tmp_path: Path) -> None:
    folder_of(tmp_path / "set" / "train", "ab")
    folder_of(tmp_path / "set" / "test", "abz")
    with pytest.raises(BadData, match=r"missing from train.*z"):
        load(tmp_path / "set", tmp_path / "cache")


def test_large_arrays_stay_on_the_disk_behind_the_same_indexing(digits: Splits, decoded: Path) -> None:
    mapped = data.load(DataSpec(source="digits"), decoded, ram_budget=100)
    assert not isinstance(mapped.train.images, np.ndarray)
    assert mapped.fingerprint == digits.fingerprint
    rows = np.array([5, 0, 700])
    assert np.array_equal(mapped.train.images[rows], digits.train.images[rows])
    assert np.array_equal(mapped.val.images[3:9], digits.val.images[3:9])
    assert np.array_equal(mapped.test.take(rows % 300).images[:], digits.test.images[rows % 300])
    assert mapped.shape == digits.shape


def test_a_second_load_decodes_nothing(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set")
    load(root, tmp_path / "cache")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.npy")}
    load(root, tmp_path / "cache")
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.npy")}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("file", ["facts.json", "train.images.npy", "train.labels.npy", "test.source_ids.npy", "gone"])
def test_a_damaged_cache_is_made_again(file: str, mapped: bool, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set")
    folder_of(root / "train")
    folder_of(root / "test")
    for name in "ab":
        for image in (root / name).iterdir():
            image.unlink()
    spec, budget = DataSpec(source=str(root)), 10 if mapped else 10**9
    before = data.load(spec, tmp_path / "cache").fingerprint
    (facts,) = (tmp_path / "cache").rglob("facts.json")
    if file == "gone":
        (facts.parent / "train.images.npy").unlink()
    else:
        whole = (facts.parent / file).read_bytes()
        (facts.parent / file).write_bytes(whole[: len(whole) // 2])
    assert data.load(spec, tmp_path / "cache", ram_budget=budget).fingerprint == before


def test_fashion_mnist_has_the_same_classes_wherever_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torchvision import datasets

    def fake(*_: object, **__: object) -> SimpleNamespace:
        images = np.random.default_rng(0).integers(0, 256, (100, 9, 9), dtype=np.uint8)
        return SimpleNamespace(
            data=torch.from_numpy(images), targets=torch.arange(100) % 10, classes=["T-shirt/top", *"123456789"]
        )

    monkeypatch.setattr(_readers, "DEBIAN_FASHION_MNIST", tmp_path)
    monkeypatch.setattr(datasets, "FashionMNIST", fake)
    assert load("fashion-mnist", tmp_path / "cache").classes == _readers.FASHION_CLASSES


@pytest.mark.parametrize("there", [False, True])
def test_a_download_that_fails_leaves_no_folder(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data"
    if there:
        (root / "other").mkdir(parents=True)
    monkeypatch.setenv("SMALLALIGN_DATA", str(root))
    with pytest.raises(BadData, match="could not be downloaded"):
        load("mnist", tmp_path / "cache")
    assert [path.name for path in tmp_path.glob("data/*")] == ["other"] * there
    assert root.exists() == there


@pytest.mark.parametrize("count", [300, 19_999])
def test_statistics_of_at_most_so_many_images(count: int) -> None:
    from smallalign_core.data import statistics

    images = np.random.default_rng(0).integers(0, 256, (count, 3, 2, 2), dtype=np.uint8)
    few = ImageSet(images, np.zeros(count, np.int64), np.arange(count, dtype=np.uint64), ("a",))
    seen = images[:: 1 if count <= 10_000 else 2].astype(np.float64) / 255
    mean, std = statistics(few)
    assert mean == pytest.approx(seen.mean((0, 2, 3)), rel=1e-12)
    assert std == pytest.approx(seen.std((0, 2, 3)), rel=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_by_name_and_by_path(decoded: Path) -> None:
    named, by_path = load("fashion-mnist", decoded), load(FASHION, decoded)
    assert len(named.train) + len(named.val) == 60_000
    assert (len(named.val), len(named.test)) == (pytest.approx(6_000, abs=200), 10_000)
    assert named.classes[9] == "Ankle boot"
    assert np.array_equal(named.test.ids, by_path.test.ids)
