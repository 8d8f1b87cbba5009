"""Images that cost too much, and paths that are no files: each is one unreadable image, and nothing waits for it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallalign_core import data
from smallalign_core.data import _guarded, _pixels
from smallalign_core.errors import BadData, Refused
from smallalign_core.spec import DataSpec
from smallalign_core.system import limits


def folder(place: Path, each: int = 6) -> Path:
    """Two classes of small images."""
    drawn = np.random.default_rng(0).integers(0, 256, (2 * each, 12, 12), np.uint8)
    for row, pixels in enumerate(drawn):
        target = place / "cats-dogs" / ("cat", "dog")[row % 2]
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target / f"{row:03}.png")
    return place / "cats-dogs"


def scans(count: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan is repeated: each repetition is decoded again."""
    made = BytesIO()
    Image.new("L", (side, side), 99).save(made, "JPEG", progressive=True)
    content = made.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + b"\xff\xd9"


def links(target: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(target)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (os.mkfifo, "a pipe"),
        (links("/dev/zero"), "a device"),
        (links("/dev/stdin"), "a device|a pipe|a socket|a file"),
        (links("/nowhere"), "No such file"),
    ],
    ids=["pipe", "device", "stdin", "nothing"],
)
def test_what_is_no_file_is_named_and_waits_for_nothing(
    make: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    root = folder(tmp_path)
    make(root / "cat" / "odd.png")
    with pytest.raises(BadData, match=r"1 of 13 images cannot be read.*odd\.png"):
        data.load(DataSpec(source=str(root)), tmp_path / "cache")
    if what == "a pipe":
        with pytest.raises(BadData, match="a pipe, not a regular file"):
            _guarded.call(_pixels.outcome_of_header, root / "cat" / "odd.png", ".png", False)


def test_an_idx_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    os.mkfifo(tmp_path / "train-labels-idx1-ubyte")
    with pytest.raises(BadData, match="a pipe, not a regular file"):
        data.load(DataSpec(source=str(tmp_path)), tmp_path / "cache")


@pytest.mark.slow
def test_the_process_goes_on_after_each_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guarded, "SECONDS", 1)
    with pytest.raises(_guarded.OverLimit, match="takes too long to decode"):
        _guarded.call(math.factorial, 10**8)
    monkeypatch.setattr(_guarded, "WALL", 1.0)
    with pytest.raises(_guarded.OverLimit, match="takes too long to decode"):
        _guarded.call(time.sleep, 10_000)
    monkeypatch.undo()
    with pytest.raises(_guarded.OverLimit, match="crashed the decoder process"):
        _guarded.call(os.abort)
    with pytest.raises(MemoryError):
        _guarded.call(bytearray, 2 * _guarded.MEMORY)
    with pytest.raises(PermissionError):  # seccomp or not, what it may write is nothing
        _guarded.call(os.execv, "/bin/true", ["true"])
    assert _guarded.call(math.factorial, 5) == 120


def test_one_process_serves_all_and_a_fork_starts_its_own() -> None:
    assert _guarded.call(math.factorial, 3) == 6
    first = _guarded._free[-1]
    assert _guarded.call(math.factorial, 4) == 24
    assert _guarded._free[-1] is first
    child = os.fork()
    if not child:
        os._exit(len(_guarded._free))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _guarded.call(math.factorial, 5) == 120
    assert _guarded._free[-1] is first, "the fork let go of its copy only"


@pytest.mark.slow
def test_answers_come_in_order_whatever_happens_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guarded, "SECONDS", 1)
    endless = [10**8]
    arguments = [[3], ["x"], endless, *([number] for number in range(2 * _guarded.AHEAD)), endless, [-1]]
    found = [one.value or type(one.error).__name__ for one in _guarded.each(math.factorial, arguments)]
    between = [math.factorial(number) for number in range(2 * _guarded.AHEAD)]
    assert found == [6, "TypeError", "OverLimit", *between, "OverLimit", "ValueError"]


@pytest.mark.slow
def test_many_images_are_shared_by_processes_and_answered_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads larger than a pipe, a process that ends between, and errors: as with one process."""
    monkeypatch.setattr(_guarded, "SECONDS", 1)
    monkeypatch.setattr(_guarded, "MANY", 128)
    monkeypatch.setattr(_guarded, "cores", lambda: 3)
    started: list[_guarded._Process] = []
    begin = _guarded._Process.__init__
    monkeypatch.setattr(_guarded._Process, "__init__", lambda self: (started.append(self), begin(self))[1])
    arguments: list[list[Any]] = [[number] for number in range(3 * _guarded.MANY)]
    for at in (_guarded.MANY + 40, _guarded.MANY + 41, 2 * _guarded.MANY):
        arguments[at] = [10**8]
    arguments[_guarded.MANY + 50] = [-1]
    _guarded._free.clear()
    found = list(_guarded.each(math.factorial, arguments))
    wanted = [math.factorial(number) for (number,) in arguments if 0 <= number < 10**8]
    assert [one.value for one in found if one.error is None] == wanted
    odd = {at: type(one.error).__name__ for at, one in enumerate(found) if one.error is not None}
    endless = dict.fromkeys((_guarded.MANY + 40, _guarded.MANY + 41, 2 * _guarded.MANY), "OverLimit")
    assert odd == {**endless, _guarded.MANY + 50: "ValueError"}
    assert len(started) == 3 + 3
    assert [one.alive for one in started].count(True) == len(_guarded._free) == 1, "one waits for the next image"


def test_several_processes_read_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, found = folder(tmp_path, each=10), []
    monkeypatch.setattr(_guarded, "MANY", 4)
    for cores in (1, 3):
        monkeypatch.setattr(_guarded, "cores", lambda cores=cores: cores)
        found.append(data.load(DataSpec(source=str(root)), tmp_path / f"cache{cores}"))
    assert found[0].fingerprint == found[1].fingerprint
    for name in ("train", "val", "test"):
        one, three = (getattr(splits, name) for splits in found)
        assert (one.images[:] == three.images[:]).all()
        assert list(one.ids) == list(three.ids)


def test_a_look_that_is_given_up_leaves_no_answers_to_the_next() -> None:
    some = _guarded.each(math.factorial, [[number] for number in range(50)])
    assert [next(some).get() for _ in range(3)] == [1, 1, 2]
    some.close()
    assert _guarded.call(math.factorial, 5) == 120


def test_slow_images_are_refused_after_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that costs too much ends the look at the folder once it is clear that it will be refused."""
    root, tried = folder(tmp_path, each=40), []
    each = _guarded.each

    def slow(work: Callable[..., Any], given: Iterable[Any]) -> Iterator[Any]:
        if work is not _pixels.outcome_of:
            yield from each(work, given)
            return
        for one in given:
            tried.append(one)
            yield _guarded.Outcome(error=_guarded.OverLimit("the image takes too long to decode"))

    monkeypatch.setattr(_guarded, "each", slow)
    with pytest.raises(BadData, match="1 of 80 images cannot be read"):
        data.load(DataSpec(source=str(root)), tmp_path / "cache")
    assert len(tried) == 1


@pytest.mark.slow
def test_a_picture_of_endless_scans_is_one_unreadable_image(tmp_path: Path) -> None:
    root = folder(tmp_path, each=60)
    (root / "cat" / "bomb.jpg").write_bytes(scans(40_000, side=4096))
    found = data.load(DataSpec(source=str(root)), tmp_path / "cache")
    assert found.unreadable == ("cat/bomb.jpg",)
    assert len(found.train) + len(found.val) + len(found.test) == 120
    with pytest.raises(BadData, match="takes too long to decode"):
        data.decode_one((root / "cat" / "bomb.jpg").read_bytes(), (1, 8, 8))


def test_a_link_out_of_the_allowed_folders_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, secret = folder(tmp_path), tmp_path / "secret.png"
    Image.new("L", (12, 12), 200).save(secret)
    (root / "cat" / "linked.png").symlink_to(secret)
    assert len(data.load(DataSpec(source=str(root)), tmp_path / "open").classes) == 2, "nobody is confined: links hold"
    monkeypatch.setattr(limits, "_confined", (root,))
    with pytest.raises(Refused, match="outside the folders"):
        _guarded.call(_pixels.outcome_of_header, root / "cat" / "linked.png", ".png", False)
    with pytest.raises(BadData, match=r"cannot be read.*linked\.png"):
        data.load(DataSpec(source=str(root)), tmp_path / "confined")
