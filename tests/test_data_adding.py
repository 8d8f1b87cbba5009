"""Ways to a dataset on the Data page, and the images in it: a path, a folder, the camera; order, search, large view."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import axe
import numpy as np
import pytest
from chromium import dashboard, executable, launched
from PIL import Image

from pages.ui.browser import _camera
from pages.ui.data import listing
from smallalign_core import data
from smallalign_core.data import ImageSet, Splits
from smallalign_core.errors import BadData, Refused
from smallalign_core.runs import uploads
from smallalign_core.runs.store import Store
from smallalign_core.spec import DataSpec
from smallalign_core.system import limits

FAKE_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def folder(root: Path, splits: Splits, each: int = 40) -> Path:
    """Images of three digits as folders of PNG files."""
    for label, name in enumerate(("cup", "Mug", "plate")):
        (root / name).mkdir(parents=True)
        for at, row in enumerate(np.flatnonzero(splits.train.labels == label)[:each]):
            Image.fromarray(splits.train.images[row][0]).save(root / name / f"IMG_{at:03}.png")
    return root


def test_a_page_of_images_has_all_classes() -> None:
    labels = np.repeat([0, 1, 2], [50, 2, 9])
    paths = np.array([f"{'abc'[label]}/IMG_{at}.png".encode() for at, label in enumerate(labels)])
    pixels = np.zeros((61, 1, 2, 2), np.uint8)
    images = ImageSet(pixels, labels, np.arange(61, dtype=np.uint64), ("a", "b", "c"), paths=paths)
    order = listing.rows(images)
    assert labels[order[:9]].tolist() == [0, 1, 2, 0, 1, 2, 0, 2, 0]
    assert sorted(order) == list(range(61))
    for label in range(3):
        assert order[labels[order] == label].tolist() == listing.rows(images, label).tolist()
    assert listing.rows(images, None, "img_5").tolist() == [5, 50, 52, 51, *range(53, 60)]
    assert listing.rows(images, 1, "A/").tolist() == []
    assert listing.rows(images, 0, " A/img_49 ").tolist() == [49]


def test_a_folder_is_kept_as_one_file_whatever_its_order(
    store: Store, tmp_path: Path, digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "photos", digits, 12)
    files = [(str(one.relative_to(tmp_path)), one.read_bytes()) for one in root.rglob("*.png")]
    content = uploads.packed(files)
    assert uploads.packed(files[::-1]) == content
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    file, new = uploads.keep(store, "photos", content)
    assert new
    given = data.load(DataSpec(source=str(root)), store.data_cache)
    kept = data.load(DataSpec(source=str(file)), store.data_cache)
    assert (kept.classes, kept.train.fingerprint) == (given.classes, given.train.fingerprint)
    monkeypatch.setenv("SMALLALIGN_UPLOADS_EACH_MB", "1")
    with pytest.raises(Refused, match="at most 1 MB"):
        uploads.packed([*files, ("photos/big.png", bytes(1024**2))])


@pytest.mark.parametrize(
    "sent",
    [
        None,
        [],
        {"name": "a"},
        {"name": 1, "content": []},
        {"name": " ", "content": []},
        {"name": "a" * (_camera.MOST_NAME + 1), "content": []},
        {"name": "a", "content": "x"},
        {"name": "a", "content": ["%"]},
        {"name": "a", "content": [base64.b64encode(b"GIF89a").decode()]},
        {"name": "a", "content": [base64.b64encode(_camera.JPEG + bytes(_camera.MOST_BYTES)).decode()]},
        {"name": "a", "content": [""] * (_camera.MOST_IMAGES + 1)},
    ],
)
def test_a_browser_that_sends_no_recording_is_refused(sent: Any) -> None:
    with pytest.raises(BadData, match="camera"):
        _camera.recording(sent)
    image = _camera.JPEG + b"rest"
    assert _camera.recording({"name": " a ", "content": [base64.b64encode(image).decode()]}) == ("a", [image])


@pytest.mark.slow
def test_an_entered_path_is_the_dataset(shown: Any, tmp_path: Path, digits: Splits) -> None:
    root = folder(tmp_path / "photos", digits)
    app = shown("data", data="digits")
    assert not [one for one in app.text_input if one.label == "File name"], "digits have no files"
    field = next(one for one in app.text_input if one.label == "Path of your dataset")
    field.set_value(f" {root} ").run()
    assert not app.exception
    assert next(one for one in app.metric if one.label == "Classes").value == "3"
    assert next(one for one in app.text_input if one.label == "Path of your dataset").value == ""
    next(one for one in app.text_input if one.label == "File name").set_value("no such file").run()
    assert "No file name contains this text." in [one.value for one in app.caption]


@pytest.mark.browser
@pytest.mark.slow
def test_a_folder_and_recordings_become_datasets_and_images_open_large(tmp_path: Path, digits: Splits) -> None:
    if (found := executable()) is None:
        pytest.skip("needs Chromium: install it, or name it in CHROMIUM")
    from playwright.sync_api import expect, sync_playwright

    store, root = Store(tmp_path / "models"), folder(tmp_path / "photos", digits)
    (partly := tmp_path / "partly" / "cup").mkdir(parents=True)
    (partly / "large.png").write_bytes(bytes(3 * limits.MB))
    for name in ("a.png", "b.txt"):
        (partly / name).write_bytes(b"x")
    environment = {"SMALLALIGN_STORE": str(store.root), "OMP_NUM_THREADS": "1", "SMALLALIGN_UPLOAD_MB": "1"}
    with dashboard(tmp_path / "log.txt", environment=environment) as address, sync_playwright() as playwright:
        page = launched(playwright, found, *FAKE_CAMERA).new_page()
        page.goto(f"{address}/data?data=digits")
        page.get_by_text("Upload a folder or zip").click()
        page.locator("input[type=file]").set_input_files(partly.parent)
        page.get_by_text("The file is larger than 1 MB (given: 1 of 3 files were not accepted").wait_for()
        assert not uploads.kept(store)
        assert axe.grave(page) == []
        page.locator("input[type=file]").set_input_files(root)
        page.get_by_role("button", name="Mug, photos/Mug/IMG_0").first.wait_for()
        (kept,) = uploads.kept(store)
        assert kept.name.startswith("photos-")
        assert len(zipfile.ZipFile(kept).namelist()) == 120, "more than a browser sends at once"
        expect(page.get_by_text("The file is larger")).to_have_count(0)
        assert page.locator(".gallery").evaluate("one => one.parentNode.innerHTML.split('data:image').length") == 2
        assert "data:" not in str(page.locator(".tile").first.get_attribute("style"))
        expect(page.locator(".tile").last).to_have_css("background-image", re.compile("data:image/png"))

        page.get_by_label("File name").fill("IMG_01")
        page.keyboard.press("Enter")
        expect(page.locator(".item").first).to_have_attribute("aria-label", re.compile("Mug, photos/Mug/IMG_01"))
        page.locator(".item").first.focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("photos/Mug/IMG_01")
        expect(page.get_by_role("dialog")).to_contain_text("Size of the file's image8 × 8 pixels")
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("dialog")).to_contain_text("photos/cup/IMG_01")
        wide = page.locator("canvas.large").bounding_box()
        page.keyboard.press("+")
        larger = page.locator("canvas.large").bounding_box()
        assert wide
        assert larger
        assert larger["width"] == pytest.approx(1.5 * wide["width"], rel=0.02)
        assert axe.grave(page) == []
        page.keyboard.press("Escape")
        expect(page.locator(".item").nth(1)).to_be_focused()

        page.get_by_test_id("stExpander").get_by_text("Camera", exact=True).click()
        page.get_by_role("button", name="Start camera").click()
        expect(page.get_by_role("button", name="Hold to record")).to_be_disabled()
        for name in ("disk", "wheel"):
            field = page.get_by_role("textbox", name="Class")
            field.clear()
            field.press_sequentially(name)  # and no Enter: what is in the field is the class
            record = page.get_by_role("button", name="Hold to record")
            expect(record).to_be_enabled()
            record.hover()
            page.mouse.down()
            expect(field).to_be_disabled()  # a recording is of one class
            page.get_by_text(re.compile("^(2[4-9]|[3-9].|100) of at most 100")).wait_for()
            page.mouse.up()
            page.get_by_test_id("stExpander").get_by_text(re.compile(f"{name}: [2-9]")).wait_for()
        assert axe.grave(page) == []
        page.get_by_role("button", name="Create dataset").click()
        page.get_by_role("button", name="wheel, camera/wheel/").first.wait_for()
    assert {one.name.split("-")[0] for one in uploads.kept(store)} == {"photos", "camera"}


@pytest.mark.parametrize("name", ["cats/\udcff.png", "x" * 70_000, "cats\0/a.png"])
def test_a_path_that_no_zip_can_hold_is_one_sentence(name: str) -> None:
    with pytest.raises(Refused, match="The name of a file cannot be stored"):
        uploads.packed([("cats/a.png", b"1"), (name, b"2")])
