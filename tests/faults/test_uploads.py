"""Uploads: what a user may send, what is refused in words, and that nothing of what was refused is left behind."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import stat
import struct
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import processes
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, Router
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import DeletedFile

from pages.ui import _compat
from pages.ui.data import capture, uploading
from pages.ui.security import upload_quota
from smallalign_core import data
from smallalign_core.data import _zips
from smallalign_core.errors import BadData, Refused, SmallAlignError
from smallalign_core.runs import uploads
from smallalign_core.runs.store import Store
from smallalign_core.service.users import Role, User
from smallalign_core.spec import DataSpec
from smallalign_core.system import limits

MB = 1024**2
MOST_MB = 420
RUNNER = User("ada@example.org")


def picture(seed: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    """One small PNG."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, size[::-1], np.uint8)).save(content, "PNG")
    return content.getvalue()


def packed(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip of `entries`, under exactly these names."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, inside in entries:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo("x")
            if isinstance(name, str):
                info.filename = name  # the constructor would tidy it
            info.compress_type = method
            archive.writestr(info, inside)
    return content.getvalue()


def dataset(classes: int = 2, each: int = 12) -> bytes:
    """A zip that is as it should be."""
    return packed(*((f"set/{c}/{i}.png", picture(100 * c + i)) for c in range(classes) for i in range(each)))


def left(store: Store) -> list[Path]:
    """All files below the store but locks."""
    return [path for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock"]


def of_kind(mode: int, name: str = "a/1.png") -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (mode | 0o644) << 16
    return info


def patched(content: bytes, offset: int, value: bytes, entry: int = 0) -> bytes:
    """`content` with bytes of the `entry`-th record of its directory changed (APPNOTE 4.3.12)."""
    at = -1
    for _ in range(entry + 1):
        at = content.index(b"PK\x01\x02", at + 1)
    return content[: at + offset] + value + content[at + offset + len(value) :]


def test_a_dataset_is_kept_under_its_content_and_used_by_its_path(store: Store) -> None:
    content = dataset()
    file, new = uploads.keep(store, "../../My <b>Pets</b> 2026.ZIP", content)
    assert new
    assert file.parent == uploads.folder(store)
    assert file.name.startswith("b-2026-")  # of a path only its last part
    assert file.read_bytes() == content
    splits = data.load(DataSpec(source=str(file)), store.data_cache)
    assert splits.classes == ("0", "1")
    assert uploads.keep(store, "another name.zip", content) == (file, False)
    assert uploads.kept(store) == [file]
    uploads.discard(store, file)
    assert uploads.kept(store) == []


def test_only_uploads_are_dropped(store: Store, tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    other.write_bytes(b"mine")
    uploads.discard(store, other)
    assert other.exists()


BAD_NAMES = [
    "../evil.png",
    "a/../../evil.png",
    "a/..",
    "/etc/evil.png",
    "//server/evil.png",
    "C:/evil.png",
    "c:evil.png",
    "a\\evil.png",
    "..\\evil.png",
    "a/\x01.png",
    "a/\n.png",
    "a/\x7f.png",
    "a/\u202egnp.exe.png",
    "a/\u2066x.png",
    "a/" + "x" * 121 + ".png",
    "a/" + "\u00e4" * 119 + "\U0001f600" * 10 + ".png",
    "/".join(["abcdefghi"] * 60) + ".png",
    "a//x.png",
    "a/./x.png",
    "./x.png",
    "a./x.png",
    "a /x.png",
    "con/x.png",
    "a/NUL.png",
    "a/com1.png",
    "a/aux",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_are_refused_not_tidied(name: str, store: Store) -> None:
    with pytest.raises(BadData, match="The zip holds a name") as refused:
        uploads.keep(store, "x.zip", packed(("a/0.png", picture()), (name, picture())))
    assert len(str(refused.value)) < 400
    assert left(store) == []


def test_a_zero_byte_in_a_name(store: Store) -> None:
    content = packed(("a/0_.png", picture())).replace(b"a/0_.png", b"a/0\0.png")
    with pytest.raises(BadData, match="cannot be seen"):
        uploads.keep(store, "x.zip", content)


def bomb() -> bytes:
    return packed(("a/0.bmp", bytes(40 * MB)))


def overlapping() -> bytes:
    """Two entries whose bytes are the same (Fifield, 2019)."""
    content = packed(("a/0.png", picture(0)), ("a/1.png", picture(1)))
    return patched(content, 42, struct.pack("<I", 0), entry=1)


def crowd() -> bytes:
    """A million entries of 47 bytes, and an end that admits to 65,535."""
    record = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    directory = record * 1_000_000
    return b"PK\x03\x04" + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 4, 0)


def modest_crowd() -> bytes:
    """The same with an end that admits to one."""
    content = crowd()
    return content[:-14] + struct.pack("<H", 1) + content[-12:]


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "no zip": (lambda: b"MZ" + bytes(500), "not a zip archive"),
    "an image": (picture, "not a zip archive"),
    "empty": (lambda: b"", "not a zip archive"),
    "only the magic": (lambda: b"PK\x03\x04", "not a whole zip"),
    "cut short": (lambda: dataset()[:-300], "not a whole zip|cannot be read"),
    "no images": (lambda: packed(("a/x.txt", b"hello")), "no images"),
    "a bomb": (bomb, "unpacks to more"),
    "a bomb in many files": (
        lambda: packed(*((f"a/{i}.bmp", bytes(MB)) for i in range(12))),
        "unpacks to more",
    ),
    "one large file": (lambda: packed(("a/0.bmp", os.urandom(MB) * 51), method=zipfile.ZIP_STORED), "unpacks to more"),
    "overlapping": (overlapping, "share bytes"),
    "a million entries": (crowd, "over 20,000 entries"),
    "a million entries, one admitted": (modest_crowd, "over 20,000 entries"),
    "only a zip inside": (lambda: packed(("b.zip", dataset()), ("a/c.zip", dataset())), "no images"),
    "a link": (lambda: packed((of_kind(stat.S_IFLNK), b"/etc/passwd")), "a link or a device"),
    "a device": (lambda: packed((of_kind(stat.S_IFCHR), b"")), "a link or a device"),
    "a pipe": (lambda: packed((of_kind(stat.S_IFIFO), b"")), "a link or a device"),
    "encrypted": (lambda: patched(packed(("a/0.png", picture())), 8, struct.pack("<H", 1)), "an encrypted file"),
    "LZMA": (lambda: packed(("a/0.png", picture()), method=zipfile.ZIP_LZMA), "an unusual way"),
    "case": (lambda: packed(("a/x.png", picture()), ("a/X.png", picture(1))), "upper and lower case"),
    "case of a class": (lambda: packed(("Cat/x.png", picture()), ("cat/y.png", picture(1))), "upper and lower case"),
    "composed twice": (
        lambda: packed(("a/\u00e4.png", picture()), ("a/a\u0308.png", picture(1))),
        "upper and lower case",
    ),
    "twice": (lambda: packed(("a/x.png", picture()), ("a/x.png", picture(1))), "upper and lower case"),
    "file and folder": (lambda: packed(("a/x.png", picture()), ("a/x.png/y.png", picture(1))), "file and a folder"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", REFUSED)
def test_hostile_zips_are_refused_quickly_and_leave_nothing(what: str, store: Store) -> None:
    make, says = REFUSED[what]
    content = make()
    began = time.process_time()
    with pytest.raises(SmallAlignError, match=says):
        uploads.keep(store, "x.zip", content)
    assert time.process_time() - began < 2
    assert left(store) == []


def test_a_header_that_lies_about_the_size_is_found_out_while_unpacking(store: Store) -> None:
    content = packed(*((f"{c}/{i}.png", picture(i)) for c in "ab" for i in range(8)), ("a/0.bmp", bytes(5 * MB)))
    content = patched(content, 24, struct.pack("<I", 10_000), entry=16)  # 5 MB, it says 10 kB
    file, _ = uploads.keep(store, "x.zip", content)
    with pytest.raises(BadData, match="cannot be read"):
        data.load(DataSpec(source=str(file)), store.data_cache)
    uploads.discard(store, file)
    assert left(store) == []


def test_the_counter_is_hard(tmp_path: Path) -> None:
    bounds = _zips.Bounds(entries=10, total=1000, entry=1000)
    with zipfile.ZipFile(io.BytesIO(packed(("a/0.png", b"x" * 900), ("a/1.png", b"y" * 900)))) as archive:
        for entry in archive.infolist():
            entry.file_size = 100  # as if the check had been passed
        with pytest.raises((BadData, zipfile.BadZipFile)):
            _zips.unpack(archive, tmp_path / "room", bounds)
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.png")) <= 1000


def test_composed_names_of_a_mac_become_ordinary_ones(store: Store) -> None:
    names = ("Ka\u0308fer", "Bl\u00fcte")
    content = packed(*((f"{name}/{i}.png", picture(i + 20 * len(name))) for name in names for i in range(8)))
    file, _ = uploads.keep(store, "x.zip", content)
    classes = data.load(DataSpec(source=str(file)), store.data_cache).classes
    assert sorted(classes) == sorted(unicodedata.normalize("NFC", name) for name in names)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet="ab./\\:\0\u0308 ~\u202e\xe4N", max_size=14).map(lambda t: t + ".png"), max_size=4))
def test_every_path_that_is_written_is_inside(tmp_path: Path, names: list[str]) -> None:
    room = tmp_path / "room"
    before = set(tmp_path.rglob("*"))
    try:
        with zipfile.ZipFile(io.BytesIO(packed(*((name, b"x") for name in dict.fromkeys(names))))) as archive:
            _zips.unpack(archive, room, _zips.of_uploads())
    except (BadData, *_zips.DAMAGED):
        pass
    for path in set(tmp_path.rglob("*")) - before:
        assert path.resolve().is_relative_to(room.resolve())
    shutil.rmtree(room, ignore_errors=True)


# --- room and rights --------------------------------------------------------------------------------------------------


def test_there_is_room_for_so_much_and_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLALIGN_UPLOAD_MB", "1")
    with pytest.raises(Refused, match="at most 1 MB"):
        uploads.keep(store, "x.zip", b"PK\x03\x04" + bytes(MB))
    monkeypatch.setenv("SMALLALIGN_KEPT_MB", "1")
    uploads.folder(store).mkdir(parents=True)
    (uploads.folder(store) / "old-0123.zip").write_bytes(bytes(MB))
    with pytest.raises(Refused, match="is full"):
        uploads.keep(store, "x.zip", dataset())


@pytest.mark.parametrize("role", [Role.VIEWER, Role.NOBODY])
def test_who_may_only_look_uploads_nothing(role: Role, store: Store) -> None:
    with pytest.raises(Refused):
        uploads.keep(Store(store.root, User("eve", role)), "x.zip", dataset())
    assert left(store) == []


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
def test_a_limit_that_is_no_number_is_named(text: str) -> None:
    with pytest.raises(Refused, match="SMALLALIGN_ZIP_MB is not a positive integer"):
        limits.current({"SMALLALIGN_ZIP_MB": text})


@pytest.fixture
def confined(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Users' paths are read below `allowed` only, as in the dashboard's processes."""
    (tmp_path / "allowed").mkdir()
    monkeypatch.setenv(limits.ROOTS, str(tmp_path / "allowed"))
    limits.require_allowed(store.root)
    yield tmp_path / "allowed"
    monkeypatch.delenv(limits.ROOTS)
    limits.require_allowed()


def test_paths_are_read_from_allowed_folders_only(confined: Path, tmp_path: Path, store: Store) -> None:
    with zipfile.ZipFile(io.BytesIO(dataset())) as archive:
        archive.extractall(confined)
        archive.extractall(tmp_path / "secret")
    (confined / "link").symlink_to(tmp_path / "secret")
    assert data.load(DataSpec(source=str(confined / "set")), store.data_cache).classes == ("0", "1")
    file, _ = uploads.keep(store, "x.zip", dataset())
    assert data.load(DataSpec(source=str(file)), store.data_cache)
    outside = [tmp_path / "secret" / "set", confined / ".." / "secret" / "set", confined / "link" / "set"]
    for path in [*outside, tmp_path / "none", Path("/etc"), Path("~"), tmp_path / "allowed-not"]:
        with pytest.raises(Refused, match="outside the folders"):
            data.load(DataSpec(source=str(path)), store.data_cache)
        with pytest.raises(Refused, match="outside the folders"):
            store.run(str(path))


def test_the_owner_is_confined_nowhere(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.ROOTS, "")  # set for the dashboard; no process but its own calls `confine`
    with zipfile.ZipFile(io.BytesIO(dataset())) as archive:
        archive.extractall(tmp_path)
    assert data.load(DataSpec(source=str(tmp_path / "set")), store.data_cache).classes == ("0", "1")


@pytest.mark.slow
def test_an_upload_that_cannot_be_read_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLALIGN_STORE", str(store.root))
    content = packed(*((f"{c}/{i}.png", b"no image at all") for c in "ab" for i in range(9)))
    try:
        with pytest.raises(BadData.__mro__[1], match="cannot be read"):
            uploading.receive(Store(store.root, RUNNER), "x.zip", content)
        assert uploads.kept(store) == []
        assert [file for file in left(store) if file.name != "backend.log"] == []
        assert uploading.receive(Store(store.root, RUNNER), "y.zip", dataset()).endswith(".zip")
    finally:
        uploading.context.client().close()


# --- images -----------------------------------------------------------------------------------------------------------


def png(width: int, height: int, *, bits: int = 1, kind_of: int = 0) -> bytes:
    """A PNG of zeros of any size (`bits` a channel, `kind_of` as in its header), without making its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    squeeze, row = zlib.compressobj(1), bytes(1 + -(-width * bits * (4 if kind_of == 6 else 1) // 8))
    body = b"".join(squeeze.compress(row * 64) for _ in range(-(-height // 64))) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, kind_of, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9_000, 9_000), (20_000, 20_000), (5_001, 5_000), (32_769, 8), (8, 32_769)])
def test_a_small_file_of_many_pixels_is_refused_by_its_header(size: tuple[int, int]) -> None:
    began = time.process_time()
    content = png(*size) if size[0] < 20_000 else png(20_000, 64)[:16] + struct.pack(">II", *size)
    with pytest.raises(BadData, match=r"million pixels|not an image"):
        data.decode_one(content, (1, 8, 8))
    assert time.process_time() - began < 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@pytest.mark.parametrize(("bits", "kind_of"), [(1, 0), (8, 6)], ids=["black and white", "colour and transparency"])
def test_the_largest_image_is_decoded_in_little_memory(bits: int, kind_of: int, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png(5_000, 5_000, bits=bits, kind_of=kind_of))
    code = (
        "from smallalign_core import data; from pathlib import Path\n"
        f"data.decode_one(Path({str(tmp_path / 'x.png')!r}).read_bytes(), (3, 32, 32))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = processes.run(processes.python("-c", code), check=True)
    assert int(done.stdout) / 1024 < MOST_MB


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)  # type: ignore[arg-type]
    return content.getvalue()


RED = Image.new("RGB", (16, 8), (255, 0, 0))
HALF = np.zeros((8, 16), np.uint16)
HALF[:, 8:] = 65535


def turned() -> bytes:
    """Red above blue, stored lying on its side, with the tag that says so."""
    pixels = np.zeros((16, 8, 3), np.uint8)
    pixels[:8, :, 0] = pixels[8:, :, 2] = 255
    tags = Image.Exif()
    tags[0x0112] = 6
    return saved(Image.fromarray(np.rot90(pixels).copy()), "JPEG", exif=tags, quality=100, subsampling=0)


def frames() -> bytes:
    return saved(RED, "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 8), (0, 255, 0))], lossless=True)


ODD: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "CMYK": (lambda: saved(RED.convert("CMYK"), "JPEG", quality=100), (255, 0, 0)),
    "palette": (lambda: saved(RED.convert("P"), "PNG"), (255, 0, 0)),
    "animated, first frame": (frames, (255, 0, 0)),
    "transparent": (lambda: saved(Image.new("RGBA", (16, 8), (255, 0, 0, 255)), "PNG"), (255, 0, 0)),
    "grey with alpha": (lambda: saved(Image.new("LA", (16, 8), (200, 255)), "PNG"), (200, 200, 200)),
    "1 bit": (lambda: saved(Image.new("1", (16, 8), 1), "PNG"), (255, 255, 255)),
    "bitmap": (lambda: saved(RED, "BMP"), (255, 0, 0)),
}


@pytest.mark.parametrize("what", ODD)
def test_unusual_images_come_out_right(what: str) -> None:
    make, expected = ODD[what]
    pixels = data.decode_one(make(), (3, 8, 8)).reshape(3, -1).mean(axis=1)
    assert np.abs(pixels - expected).max() < 6


def test_sixteen_bits_keep_their_high_byte() -> None:
    pixels = data.decode_one(saved(Image.fromarray(HALF), "PNG"), (1, 8, 16))
    assert (pixels[0, :, 0], pixels[0, :, -1]) == (pytest.approx(0), pytest.approx(255))


def test_a_photograph_is_turned_upright() -> None:
    pixels = data.decode_one(turned(), (3, 16, 8)).astype(int)
    assert pixels[0, 2].min() > 200
    assert pixels[2, -2].min() > 200


@pytest.mark.parametrize(
    "content",
    [
        saved(RED, "ICO"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        saved(RED, "JPEG")[:200],
        saved(RED, "PNG")[:50],
        picture()[:20] + bytes(200),
        b"",
    ],
    ids=["ico", "postscript", "svg", "cut jpeg", "cut png", "damaged png", "empty"],
)
def test_other_formats_and_damaged_files_are_no_images_whatever_their_name(content: bytes) -> None:
    with pytest.raises(BadData, match="not an image"):
        data.decode_one(content, (3, 8, 8))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "WEBP", "AVIF", "JPEG2000", "HEIF"])
def test_formats_of_scanners_phones_and_the_web_are_read(kind: str) -> None:
    from pillow_heif import register_heif_opener

    register_heif_opener()
    assert np.abs(data.decode_one(saved(RED, kind), (3, 8, 8))[:, 4, 4].astype(int) - [255, 0, 0]).max() <= 12


def test_what_is_no_image_is_left_out_before_names_are_judged(store: Store) -> None:
    """A Mac's folder icon, a stray archive and packed labels are never unpacked: they are named and counted instead."""
    content = packed(
        *((f"set/{c}/{i}.png", picture(100 * c + i)) for c in range(2) for i in range(12)),
        ("set/0/Icon\r", b"icon"),
        ("set/labels.csv.gz", b"x"),
        ("set/old.zip", dataset()),
        ("set/1/notes:1.txt", b"x"),
    )
    file, _ = uploads.keep(store, "x.zip", content)
    notes = " ".join(data.load(DataSpec(source=str(file)), store.data_cache).notes)
    assert "1 file of other kinds in class folders" in notes
    assert "2 files of other kinds outside the class folders" in notes
    assert ".gz" in notes
    assert ".zip" in notes


# --- the quota of the upload route ------------------------------------------------------------------------------------


class Storage:
    """Stands for Streamlit's memory of uploads: what the route was given, by visit."""

    def __init__(self) -> None:
        self.file_storage: dict[str, dict[str, SimpleNamespace]] = {}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> tuple[upload_quota.Quota, Storage]:
    """The quota around a route that keeps files as Streamlit's does."""
    storage = Storage()
    runtime = SimpleNamespace(uploaded_file_mgr=storage)
    monkeypatch.setattr(_compat, "_runtime", lambda: runtime)
    monkeypatch.setenv("SMALLALIGN_UPLOAD_MB", "1")
    monkeypatch.setenv("SMALLALIGN_UPLOADS_EACH_MB", "3")
    monkeypatch.setenv("SMALLALIGN_UPLOADS_TOTAL_MB", "5")
    monkeypatch.setenv("SMALLALIGN_UPLOADS_AT_ONCE", "2")

    async def route(request: Request) -> PlainTextResponse:
        body = await request.body()
        visit = storage.file_storage.setdefault(request.path_params["session"], {})
        visit[request.path_params["file"]] = SimpleNamespace(data=body)
        return PlainTextResponse("", 204)

    app = Router(routes=[Route("/_stcore/upload_file/{session}/{file}", route, methods=["PUT"])])
    return upload_quota.Quota(app), storage


async def put(wall: upload_quota.Quota, session: str, name: str, size: int, *, chunked: bool = False) -> httpx.Response:
    async def pieces() -> object:  # without Content-Length
        for _ in range(max(1, size // 65536)):
            yield bytes(65536)
            await asyncio.sleep(0)

    transport = httpx.ASGITransport(app=wall)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        address = f"/_stcore/upload_file/{session}/{name}"
        return await client.put(address, content=pieces() if chunked else bytes(size))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunked", [False, True])
def test_one_file_a_visit_and_everybody_have_their_share(
    served: tuple[upload_quota.Quota, Storage], chunked: bool
) -> None:
    wall, storage = served

    async def story() -> None:
        said = await put(wall, "a", "0", 3 * MB, chunked=chunked)  # 1 MB, and what a form adds
        assert said.status_code == 413
        assert "larger than 1 MB" in said.text
        assert storage.file_storage == {}
        codes = [(await put(wall, "a", str(at), MB, chunked=chunked)).status_code for at in range(4)]
        assert codes == [204, 204, 204, 413]
        assert (await put(wall, "b", "0", MB, chunked=chunked)).status_code == 204
        assert (await put(wall, "b", "1", MB, chunked=chunked)).status_code == 204
        everybody = await put(wall, "c", "0", MB, chunked=chunked)
        assert everybody.status_code == 429
        storage.file_storage.pop("a")  # the visit is over
        assert (await put(wall, "c", "0", MB, chunked=chunked)).status_code == 204
        assert not upload_quota._arriving
        assert not upload_quota._under_way

    asyncio.run(story())


def test_only_so_many_arrive_at_the_same_time_and_the_others_wait(
    served: tuple[upload_quota.Quota, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, storage = served
    most, route = [0], wall.app

    async def watched(*arguments: Any) -> None:
        most.append(upload_quota._under_way.total())
        await route(*arguments)

    monkeypatch.setattr(wall, "app", watched)
    monkeypatch.setattr(upload_quota, "MOST_WAITING", 3)

    async def story() -> None:
        sizes = [one.status_code for one in await asyncio.gather(*(put(wall, c, "0", MB // 4) for c in "abcd"))]
        assert sizes == [204] * 4
        sent = [put(wall, "f", str(at), MB // 4, chunked=True) for at in range(8)]
        *many, other = await asyncio.gather(*sent, put(wall, "g", "0", MB // 4))
        codes = [one.status_code for one in many]
        assert codes.count(429) == 3, "2 arrive, 3 wait"
        assert codes.count(204) == 5
        assert other.status_code == 204, "a session's waiting files are not another's"
        assert not upload_quota._under_way
        assert not wall.waiting

    asyncio.run(story())
    assert max(most) == 2
    assert len(storage.file_storage["f"]) == 5


def test_uploads_under_way_count_before_they_are_whole(served: tuple[upload_quota.Quota, Storage]) -> None:
    wall, storage = served
    storage.file_storage["a"] = {"x": SimpleNamespace(data=bytes(int(1.5 * MB)))}

    async def story() -> None:
        both = await asyncio.gather(*(put(wall, "a", str(at), MB, chunked=True) for at in range(2)))
        assert 413 in [one.status_code for one in both]

    asyncio.run(story())
    assert sum(len(file.data) for file in storage.file_storage["a"].values()) <= 3 * MB


def test_a_visit_holds_only_so_many_files(served: tuple[upload_quota.Quota, Storage]) -> None:
    wall, storage = served
    storage.file_storage["a"] = {str(at): SimpleNamespace(data=b"") for at in range(limits.current().upload_files)}
    assert asyncio.run(put(wall, "a", "x", 10)).status_code == 429


@pytest.mark.slow
def test_an_upload_that_never_ends_is_ended(
    served: tuple[upload_quota.Quota, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, storage = served
    monkeypatch.setenv("SMALLALIGN_UPLOAD_SECONDS", "1")
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(30)
        raise AssertionError

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "PUT", "path": "/_stcore/upload_file/a/x", "headers": [], "query_string": b""}
    asyncio.run(wall(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 408
    assert not upload_quota._under_way
    assert storage.file_storage == {}


def test_an_upload_that_ends_lets_the_next_one_in_whoever_gave_up_waiting(
    served: tuple[upload_quota.Quota, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was next may be cancelled at any moment; and the time of an upload begins once it is its turn."""
    monkeypatch.setenv("SMALLALIGN_UPLOADS_AT_ONCE", "1")
    begun, timeout = [0], asyncio.timeout
    monkeypatch.setattr(asyncio, "timeout", lambda seconds: begun.append(seconds) or timeout(seconds))

    async def story(ticks: int) -> None:
        end, served_now = asyncio.Event(), asyncio.Event()

        async def route(scope: Any, receive: Any, send: Any) -> None:
            served_now.set()
            await end.wait()

        async def nothing(*_: Any) -> Any:
            raise AssertionError

        wall, scope = upload_quota.Quota(route), {"type": "http", "method": "PUT", "headers": [], "query_string": b""}
        begun.clear()
        calls = [
            asyncio.create_task(wall({**scope, "path": f"/_stcore/upload_file/{one}/x"}, nothing, nothing))
            for one in "abc"
        ]
        await served_now.wait()
        await asyncio.sleep(0)
        assert len(begun) == 1
        end.set()
        for _ in range(ticks):
            await asyncio.sleep(0)
        calls[1].cancel()
        _, still = await asyncio.wait(calls, timeout=20)
        assert not still, "the third waits forever"

    for ticks in range(8):
        asyncio.run(story(ticks))


@pytest.fixture
def held(served: tuple[upload_quota.Quota, Storage], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Streamlit's own storage behind the quota, in a page of session `a`."""

    class Files(MemoryUploadedFileManager):
        """As Streamlit's; what is changed of it is changed for this test."""

    monkeypatch.setattr(_compat, "_Uploads", Files)
    monkeypatch.setattr(_compat, "session", lambda: "a")
    _compat.count_announced()
    _compat.count_announced()
    files = Files("/_stcore/upload_file")
    runtime = SimpleNamespace(uploaded_file_mgr=files)
    monkeypatch.setattr(_compat, "_runtime", lambda: runtime)
    served[1].file_storage = files.file_storage  # type: ignore[assignment]
    return files


def folder(wall: upload_quota.Quota, files: Any, count: int, *, size: int = 10) -> tuple[list[int], list[Any]]:
    """Upload a folder as a browser does: the answers, and the files that the page gets."""
    ids = [one.file_id for one in files.get_upload_urls("a", [f"set/{at}.png" for at in range(count)])]

    async def story() -> list[int]:
        return [one.status_code for one in await asyncio.gather(*(put(wall, "a", one, size) for one in ids))]

    codes = asyncio.run(story())
    there = files.file_storage["a"]
    return codes, [
        SimpleNamespace(file_id=one, name="x", getvalue=lambda one=one: there[one].data) for one in ids if one in there
    ]


def test_a_folder_of_which_a_file_was_refused_is_refused_as_a_whole(
    served: tuple[upload_quota.Quota, Storage], held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMALLALIGN_UPLOAD_FILES", "5")
    codes, files = folder(served[0], held, 10)
    assert sorted(codes) == [204] * 5 + [429] * 5, "not one more, even of those that arrive at the same time"
    with pytest.raises(Refused) as refused:
        uploading._arrived(files)
    assert str(refused.value) == (
        "A session may hold 5 files (given: 5 of 10 files were not accepted, so none was kept). "
        "Upload a zip of a larger folder, or enter its path."
    )
    for file in files:
        _compat.drop_upload(file.file_id)
    codes, files = folder(served[0], held, 5)
    assert codes == [204] * 5, "as many as allowed are never too many"
    assert len(uploading._arrived(files)) == 5, "what was refused before is over"


def test_a_file_that_never_arrives_is_missed(served: tuple[upload_quota.Quota, Storage], held: Any) -> None:
    _, files = folder(served[0], held, 3)
    with pytest.raises(Refused, match="given: 1 of 3 files"):
        uploading._arrived(files[1:])
    with pytest.raises(Refused, match="did not arrive"):
        uploading._arrived([*files[1:], DeletedFile(files[0].file_id)])
    assert len(uploading._arrived(files)) == 3


def test_refused_files_are_missed_where_their_upload_is_unknown(
    served: tuple[upload_quota.Quota, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamlit's ids say nothing of the upload; what was refused in the session is known."""
    monkeypatch.setattr(_compat, "session", lambda: "a")
    asyncio.run(put(served[0], "a", "one", 3 * MB))
    there = SimpleNamespace(file_id="two", name="x", getvalue=lambda: b"")
    with pytest.raises(Refused, match="given: 1 of 2 files"):
        uploading._arrived([there])
    assert uploading._arrived([there]) == [("x", b"")]


def test_recordings_share_the_memory_of_uploads(
    served: tuple[upload_quota.Quota, Storage], held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall, _ = served
    made: capture.Recordings = {}
    capture._add(made, "cup", [bytes(MB), bytes(MB)])
    assert _compat.uploads_held() == {"a": (2 * MB, 2)}
    monkeypatch.setenv("SMALLALIGN_UPLOADS_TOTAL_MB", "3")
    assert asyncio.run(put(wall, "b", "0", MB - 1000)).status_code == 204
    with pytest.raises(Refused, match="memory of this server is full") as refused:
        capture._add(made, "mug", [bytes(MB)])
    assert "delete a class" in str(refused.value)
    assert list(made) == ["cup"]
    assert asyncio.run(put(wall, "b", "1", MB)).status_code == 429
    capture._delete(made, "cup")
    assert "a" not in {one for one, (size, _) in _compat.uploads_held().items() if size}
    assert asyncio.run(put(wall, "b", "1", MB)).status_code == 204
