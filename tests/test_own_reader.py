"""A user's own reader: what it yields becomes a dataset, who may run it, and what is said where it is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import smallalign_core as sa
from smallalign_core import data
from smallalign_core.cli._main import main
from smallalign_core.errors import BadSpec, Refused, SmallAlignError
from smallalign_core.runs.store import Store
from smallalign_core.service import handlers
from smallalign_core.service.requests import Inspect
from smallalign_core.service.users import Role, User
from smallalign_core.spec import digest, parse, parse_data
from smallalign_core.spec.data import PythonReader
from smallalign_core.system import usercode
from smallalign_core.training import contracts
from smallalign_core.training.resolve import resolve

FILE = Path(__file__).parent / "fixtures" / "user" / "reader.py"


@pytest.fixture(autouse=True)
def list_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with no file allowed and none imported."""
    monkeypatch.setenv(usercode.TRUSTED, str(tmp_path / "trusted"))
    monkeypatch.setattr(usercode, "_ALLOWED", set())
    monkeypatch.setattr(usercode, "_MODULES", {})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Twelve pictures each of 2, 10 and x, of which the last two are for the test."""
    root, draw = tmp_path / "place", np.random.default_rng(0)
    (root / "pictures").mkdir(parents=True)
    for name in ("2", "10", "x"):
        for number in range(12):
            pixels = draw.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / f"{name}_{number:02}.png")
    (root / "test.txt").write_text(" ".join(f"{name}_{number}.png" for name in ("2", "10", "x") for number in (10, 11)))
    return root


def wrote(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "own.py"
    file.write_text(text)
    return file


def allowed(file: Path) -> Path:
    usercode.trust_here(usercode.read(file)[1])
    return file


def fields(place: Path, file: Path, **more: Any) -> dict[str, Any]:
    return {"source": str(place), "reader": {"kind": "python", "file": str(file), **more}}


def test_what_it_yields_is_the_dataset(place: Path, store: Store) -> None:
    splits = sa.load(fields(place, FILE), store=store.root)
    assert splits.classes == ("2", "10", "x")
    assert splits.reader == "python"
    assert splits.test.counts() == {"2": 2, "10": 2, "x": 2}
    assert len(splits.train) + len(splits.val) == 30
    assert splits.test.paths is not None
    for row, path in enumerate(splits.test.paths):
        pixels = np.asarray(Image.open(place / path.decode()))
        assert np.array_equal(splits.test.images[row], pixels.transpose(2, 0, 1))
        assert path.decode().startswith(f"pictures/{splits.classes[splits.test.labels[row]]}_")


def test_pixels_and_whole_numbers_are_read_too(place: Path, store: Store, tmp_path: Path) -> None:
    text = "import numpy as np\ndef read(source, grey):\n    for number in range(60):\n"
    text += "        image = np.full((6, 7) if grey else (6, 7, 3), number, np.uint8)\n"
    text += "        yield image, number % 3, ('train', 'valid', 'testing')[number // 20]\n"
    file = wrote(tmp_path, text)
    for grey, channels in ((True, 1), (False, 3)):
        splits = sa.load(fields(place, file, **{"with": {"grey": grey}}), store=store.root)
        assert splits.shape == (channels, 6, 7)
        assert [len(part) for part in (splits.train, splits.val, splits.test)] == [20, 20, 20]
        assert np.array_equal(splits.test.images[:, 0, 0, 0] % 3, splits.test.labels)
        assert sorted(splits.test.images[:, 0, 0, 0].tolist()) == list(range(40, 60))
    assert not list(store.data_cache.glob("*/unzipped"))


def test_it_runs_once_and_again_where_it_or_the_source_changed(place: Path, store: Store, tmp_path: Path) -> None:
    count = tmp_path / "count"
    file = wrote(tmp_path, FILE.read_text().replace("    held", f"    open({str(count)!r}, 'a').write('x')\n    held"))

    def runs() -> int:
        sa.load(fields(place, file), store=store.root)
        return len(count.read_text())

    assert [runs(), runs()] == [1, 1]
    file.write_text(file.read_text() + "# edited\n")
    assert [runs(), runs()] == [2, 2]
    shutil.copy(place / "pictures" / "2_00.png", place / "pictures" / "x_99.png")
    assert [runs(), runs()] == [3, 3]


@pytest.mark.slow
def test_a_run_keeps_a_copy_and_a_moved_dataset_is_found(place: Path, store: Store, tmp_path: Path) -> None:
    shutil.copy(FILE, tmp_path / "reader.py")
    spec = {"data": {"source": str(place), "reader": "reader.py"}, "network": "mlp", "epochs": 1, "batch": 8}
    (tmp_path / "s.yaml").write_text(json.dumps(spec))
    assert main(["train", str(tmp_path / "s.yaml"), "--store", str(store.root)]) == 0
    (run,) = store.runs()
    (tmp_path / "reader.py").unlink()
    place.rename(tmp_path / "moved")
    shutil.rmtree(store.data_cache)
    reader = run.spec.data.reader
    assert reader is not None
    assert Path(str(reader.file)).parent == run.folder / "code"
    with data.found_at(str(tmp_path / "moved")):
        assert len(data.load(run.spec.data, store.data_cache).test) == 6


def test_the_images_count_and_not_the_file_that_reads_them(place: Path, store: Store, tmp_path: Path) -> None:
    """Another file that yields the same is the same run: nothing that decides its weights differs."""
    other = wrote(tmp_path, FILE.read_text() + "# more words\n")
    base = {"network": "mlp", "epochs": 1, "batch": 8}
    first, second = (digest(resolve(store, parse({**base, "data": fields(place, one)}))) for one in (FILE, other))
    assert first == second


@pytest.mark.parametrize("role", [Role.NOBODY, Role.VIEWER, Role.RUNNER, Role.LOCAL])
def test_a_visitor_never_runs_a_file(role: Role, place: Path, store: Store, tmp_path: Path) -> None:
    mark = tmp_path / "it-ran"
    file = wrote(tmp_path, f"open({str(mark)!r}, 'w').close()\n" + FILE.read_text())
    if role is not Role.LOCAL:
        allowed(file)  # not even one that the owner uses
    words = "not allowed to run" if role is Role.LOCAL else "owner of this machine only"
    with pytest.raises(Refused, match=words):
        handlers.inspect(Store(store.root, User("eve", role)), Inspect(parse_data(fields(place, file))))
    assert not mark.exists()


def test_the_dashboards_own_process_reads_what_was_decoded_and_runs_nothing(place: Path, store: Store) -> None:
    from pages.ui.widgets import image_grid

    facts = handlers.inspect(store, Inspect(parse_data(fields(place, FILE))))
    assert len(image_grid.splits(facts.spec, store).test) == 6
    shutil.rmtree(store.data_cache)
    image_grid._kept.clear()
    with pytest.raises(Refused, match="dashboard's own process"):
        image_grid.splits(facts.spec, store)


WRONG: dict[str, tuple[str, list[str]]] = {
    "no rows": ("def read(source): return 3\n", ["type int, not rows", "Yield (image, label)"]),
    "nothing": ("def read(source): return []\n", ["no images for training"]),
    "no label": ("def read(source): yield source / 'pictures' / '2_00.png'\n", ["Row 1", "type PosixPath"]),
    "none midway": ("def read(source):\n  yield 'pictures/2_00.png', 'a'\n  yield None\n", ["Row 2", "None"]),
    "a palette": (
        "from PIL import Image\ndef read(source): yield Image.new('RGB', (4, 4), 'red').quantize(4), 'a'\n",
        ["Row 1", "type Image", "convert('RGB')"],
    ),
    "a float": ("def read(source): yield 'pictures/2_00.png', 0.5\n", ["Row 1", "label 0.5"]),
    "a part": (
        "def read(source): yield 'pictures/2_00.png', 'a', 'b'\n",
        ["Row 1", "part 'b'", "validation or test"],
    ),
    "floats": ("import numpy\ndef read(source): yield numpy.zeros((4, 4)), 'a'\n", ["[4, 4] and dtype float64"]),
    "lost": ("def read(source): yield from (('a.png', 'a'), ('b.png', 'b'))\n", ["a.png"]),
    "an exception": ("def read(source):\n  yield 'a.png', 'a'\n  raise KeyError('x')\n", ["own.py, line 3, in read"]),
    "an argument": ("def read(source, depth): return []\n", ["'depth'", "`with`"]),
    "a stranger": ("def read(source):\n  yield 'a', 'a'\n  yield 'b', 'b', 'test'\n", ["missing from train"]),
    "no function": ("def other(): pass\n", ["no function or class called read"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str, place: Path, store: Store, tmp_path: Path) -> None:
    text, words = WRONG[case]
    with pytest.raises(SmallAlignError) as caught:
        sa.load(fields(place, wrote(tmp_path, text)), store=store.root)
    for word in words:
        assert word in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_it_decides_labels_alone(place: Path) -> None:
    with pytest.raises(BadSpec, match="leave `columns` and `levels` out"):
        parse_data({**fields(place, FILE), "levels": 2})


def findings(place: Path, file: Path) -> dict[str, tuple[bool | None, str]]:
    part = PythonReader(file=str(allowed(file)), sha256=usercode.read(file)[1])
    return {name: done() for name, done in contracts.of_reader(part, place)}


def test_a_good_reader_passes_every_check(place: Path) -> None:
    found = findings(place, FILE)
    assert all(passed for passed, _ in found.values()), found
    assert "36 images: train 30, test 6" in found["rows"][1]


FOUND = {
    "twice": (
        "sorted((source",
        "(lambda found: __import__('random').sample(list(found), 36))((source",
        "differs when it reads again",
    ),
    "files": ('"pictures")', '"pictures" / "..")', "such as"),
    "classes": ('file.name.split("_")[0]', '"one"', "1 class, and two"),
    "images named once": ("sorted(", "2 * sorted(", "more than once"),
    "decodable": ('f"*{ending}"', '"../*.txt"', "cannot be decoded"),
}


@pytest.mark.parametrize("check", FOUND)
def test_a_check_finds_what_it_is_for(check: str, place: Path, tmp_path: Path) -> None:
    old, new, words = FOUND[check]
    text = FILE.read_text().replace(old, new)
    if check == "files":
        text = FILE.read_text().replace("yield file,", "yield file.with_suffix('.jpg'),")
    assert text != FILE.read_text()
    passed, said = findings(place, wrote(tmp_path, text))[check]
    assert passed is False, said
    assert words in said


@pytest.mark.slow
def test_inspect_and_check_take_it(place: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(place), "--set", f"reader={FILE}", "--store", str(store.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reader"] == "python"
    assert main(["check", str(FILE), "--data", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["part"].startswith("reader: read() of reader.py")
