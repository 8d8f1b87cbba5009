"""Names, notes, tags and the trash of runs; the language of lists; differences of specs; the studies of runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import command, tiny

from smallalign_core.errors import BadInput, BadModel, Refused, UnknownRun
from smallalign_core.runs import query, spec_diff, table
from smallalign_core.runs.store import Notes, Run, State, Store, _notes
from smallalign_core.runs.table import RunRow
from smallalign_core.service import doctor
from smallalign_core.service.users import Role, User
from smallalign_core.spec import digest
from smallalign_core.studies import lifecycle, membership, optimizers
from smallalign_core.studies.resolve import resolve_study
from smallalign_core.training.resolve import resolve

VIEWER = User("eve@example.org", Role.VIEWER)


def finished(store: Store, **fields: Any) -> Run:
    """A finished run with the zoo student's weights and result: nothing is trained."""
    student = store.run("digits-student")
    run = store.create(resolve(store, tiny(**fields)))
    shutil.copy(student.weights, run.weights)
    (run.folder / "result.json").write_text(json.dumps({**(student.result or {}), "id": run.id}))
    return run


def listed(store: Store, *arguments: object) -> list[dict[str, Any]]:
    done = command("runs", "list", "--json", *arguments, store=store)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    return found


# --- names, notes, tags -----------------------------------------------------------------------------------------------


def test_notes_stand_beside_the_run_and_change_nothing_else(store: Store) -> None:
    run = finished(store)
    before = {file.name: file.read_bytes() for file in run.folder.iterdir()}
    store.annotate([run.id], name="  best so far ", text="for the paper\n", tag=["paper", "v1"])
    store.annotate([run.id], untag=["v1"])
    assert run.notes == Notes("best so far", "for the paper", ("paper",))
    after = {file.name: file.read_bytes() for file in run.folder.iterdir()}
    assert after.keys() - before.keys() == {"notes.json"}
    assert {name: after[name] for name in before} == before
    assert digest(Run(run.folder).spec) == run.id
    store.annotate([run.id], name="", text="", untag=["paper"])
    assert {file.name for file in run.folder.iterdir()} == set(before)


def test_a_run_is_found_by_its_name_after_ids_and_the_zoo(store: Store) -> None:
    run, other = finished(store), finished(store, seed=1)
    store.annotate([run.id], name="best")
    assert store.run("best").id == run.id
    _notes.write(other.folder, Notes("digits-student"))  # as before starter models' names were refused
    assert store.run("digits-student").in_zoo
    store.annotate([other.id], name="best")
    with pytest.raises(UnknownRun, match="2 runs have that name"):
        store.run("best")


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"name": "x" * 81}, "at most 80 characters"),
        ({"name": "two\nlines"}, "one line"),
        ({"name": "\x1b[31mred"}, "one line"),
        ({"name": "deadbeef"}, "does not look like an id"),
        ({"text": "x" * 10_001}, "10,001 characters"),
        ({"tag": ["a b"]}, "A tag is"),
        ({"tag": [""]}, "A tag is"),
        ({"tag": ["../x"]}, "A tag is"),
        ({"tag": [f"t{number}" for number in range(21)]}, "at most 20 tags"),
    ],
)
def test_what_cannot_be_a_name_a_note_or_a_tag_changes_nothing(store: Store, given: dict[str, Any], wrong: str) -> None:
    run = finished(store)
    store.annotate([run.id], name="kept", tag=["kept"])
    with pytest.raises(BadInput, match=wrong):
        store.annotate([run.id], **{"tag": ["new"], **given})
    assert run.notes == Notes("kept", "", ("kept",))


def test_only_one_run_gets_a_name_and_no_zoo_model(store: Store) -> None:
    runs = [finished(store, seed=seed).id for seed in (0, 1)]
    with pytest.raises(BadInput, match="Several runs"):
        store.annotate(runs, name="both")
    with pytest.raises(Refused, match="Zoo models"):
        store.annotate([runs[0], "digits-student"], tag=["x"])
    assert all(store.run(run).notes == Notes() for run in runs)


def test_viewers_change_no_notes_and_no_trash(store: Store) -> None:
    run, gone = finished(store), finished(store, seed=1)
    store.delete(gone.id)
    watching = Store(store.root, VIEWER)
    tries: list[Any] = [
        lambda: watching.annotate([run.id], name="mine"),
        lambda: watching.delete(run.id),
        lambda: watching.restore(gone.id),
        watching.empty_trash,
    ]
    for attempt in tries:
        with pytest.raises(Refused, match="read-only: you cannot"):
            attempt()
    assert run.notes == Notes()
    assert len(store.trash()) == 1


def test_damaged_notes_hide_no_run_and_are_not_overwritten(store: Store) -> None:
    run = finished(store)
    store.annotate([run.id], name="best")
    written = run.folder / "notes.json"
    written.write_text(written.read_text().replace("best", "beast"))
    (row,) = [row for row in table.rows(store) if row.id == run.id]
    assert (row.display_name, row.state) == ("", "finished")
    with pytest.raises(BadModel, match="Delete that file"):
        store.annotate([run.id], tag=["x"])
    assert "beast" in written.read_text()
    found = [check for check in doctor.examine(store) if not check.ok]
    assert any("notes.json" in check.name for check in found)


@pytest.mark.slow
def test_processes_that_tag_at_once_lose_no_tag(store: Store) -> None:
    run = finished(store)
    code = (
        "import sys; from smallalign_core.runs.store import Store\n"
        "for number in range(5): Store(sys.argv[1]).annotate([sys.argv[2]], tag=[f'{sys.argv[3]}{number}'])"
    )
    line = [sys.executable, "-c", code, str(store.root), run.id]
    started = [subprocess.Popen([*line, name], env=os.environ) for name in "abc"]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    assert run.notes.tags == tuple(sorted(f"{name}{number}" for name in "abc" for number in range(5)))


# --- the trash --------------------------------------------------------------------------------------------------------


def test_delete_moves_to_the_trash_and_restore_takes_back(store: Store) -> None:
    run = finished(store)
    store.annotate([run.id], name="best")
    before = {file.name: file.read_bytes() for file in run.folder.iterdir()}
    store.delete(run.id)
    assert not run.folder.exists()
    assert run.id not in {row.id for row in table.rows(store)}
    assert [one.id for one in store.trash()] == [run.id]
    again = store.restore(run.id[:5])
    assert {file.name: file.read_bytes() for file in again.folder.iterdir() if file.name != "lock"} == before
    assert (again.state, again.notes.name) == (State.FINISHED, "best")
    assert store.trash() == []
    with pytest.raises(UnknownRun, match="No such run in the trash"):
        store.restore(run.id)


def test_a_queued_run_comes_back_stopped(store: Store) -> None:
    run = store.submit(resolve(store, tiny(seed=3)))
    store.delete(run.id)
    assert store.restore(run.id).state is State.CANCELLED
    assert store.queue() == []


def test_a_run_that_was_trained_again_is_not_overwritten(store: Store) -> None:
    store.delete(finished(store).id)
    again = finished(store)
    with pytest.raises(Refused, match="exists again"):
        store.restore(again.id)
    store.delete(again.id)
    assert len(store.trash()) == 2  # neither replaced the other
    assert store.restore(again.id).finished


def test_doctor_empties_the_trash(store: Store) -> None:
    run = finished(store)
    store.delete(run.id)
    (check,) = [check for check in doctor.examine(store) if check.name == "trash"]
    assert check.ok
    assert "1 deleted run, " in check.found
    own = store.runs_folder / ".trash" / "holiday-2026"
    own.mkdir()
    doctor.fix([check])
    assert store.trash() == []
    assert own.is_dir(), "no run was there"
    assert [check.found for check in doctor.examine(store) if check.name == "trash"] == ["empty"]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_that_is_kept_follows_its_folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RACY_NS", -1)  # keep it at once
    run = finished(store)
    moment = time.time_ns()

    def now() -> RunRow:
        nonlocal moment
        moment += 10_000_000  # two changes within a tick of the file system's clock would have one time stamp
        os.utime(run.folder, ns=(moment, moment))
        (row,) = [row for row in table.rows(store) if row.id == run.id]
        return row

    assert now().accuracy == pytest.approx(run.result["test"]["accuracy"])  # type: ignore[index]
    store.annotate([run.id], name="best", tag=["a"])
    assert (now().called, now().tags) == ("best", ("a",))
    run.weights.unlink()
    assert now().state == State.INTERRUPTED


def test_rows_that_change_in_the_same_moment_are_read_again(store: Store) -> None:
    run = finished(store)
    moment = time.time_ns()
    for name in ("a", "b", "c"):
        store.annotate([run.id], name=name)
        os.utime(run.folder, ns=(moment, moment))  # as within one tick of the file system's clock
        assert next(row.called for row in table.rows(store) if row.id == run.id) == name


# --- the language of lists --------------------------------------------------------------------------------------------


def row(id: str, **fields: Any) -> RunRow:
    return RunRow(
        **{"id": id, "name": id, "state": "finished", "title": "cnn 8x2 · kd T=4 · digits", "created": 0.0} | fields
    )


ROWS = [
    row(
        "1",
        accuracy=0.97,
        teacher="t",
        teacher_name="resnet18",
        tags=("paper", "x"),
        params=60_000,
        seed=1,
        source="a/cats",
    ),
    row("2", accuracy=0.95, teacher="t", teacher_name="ResNet50", tags=("extra",), params=40_000, seed=2),
    row("3", accuracy=0.99, display_name="My Best", optimizer="sgd", loss="kd T=4", params=None),
    row("4", state="running", seed=10, study="ab12", study_title="Optimizers: cnn"),
]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", "1234"),
        ("cnn DIGITS", "1234"),
        ("teacher:resnet acc>0.95", "1"),
        ("teacher:resnet acc>=95%", "12"),
        ("teacher=resnet50", "2"),
        ("tag:x", "1"),
        ("-tag:x", "234"),
        ("tag!=x", "234"),
        ("state:run", ""),
        ("state:running", "4"),
        ("-state:running", "123"),
        ("params<50k", "2"),
        ("params>=0.06M", "1"),
        ('name:"my best"', "3"),
        ('"my best"', "3"),
        ("best", "3"),
        ("-best", "124"),
        ('"teacher:resnet"', ""),
        ("accuracy!=0.95", "13"),
        ("sort:acc", "2134"),
        ("sort:-acc", "3124"),
        ("sort:-acc teacher:resnet", "12"),
        ("sort:teacher sort:-acc", "1234"),
        ("study:optim", "4"),
        ("data:cats", "1"),
        ("acc<2", "123"),
        ("seed:10", "4"),
        ("optimizer=sgd loss:kd", "3"),
    ],
)
def test_queries(text: str, ids: str) -> None:
    assert "".join(found.id for found in query.parse(text).select(ROWS)) == ids


def test_dates_are_local_days() -> None:
    made = [row(str(day), created=datetime(2026, 11, day, 12).astimezone().timestamp()) for day in (1, 2, 3)]
    assert [one.id for one in query.parse("created>=2026-11-02").select(made)] == ["2", "3"]
    assert [one.id for one in query.parse("created:2026-11-02").select(made)] == ["2"]
    assert [one.id for one in query.parse("created<2026-11-02T13:00").select(made)] == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("foo:3", "no such field"),
        ("acc>high", "compared with a number"),
        ("acc>", "has no value"),
        ("name>b", "has no order"),
        ("sort:foo", "no such field"),
        ("created>yesterday", "compared with a date"),
        ('name:"x', "not closed"),
    ],
)
def test_queries_that_mean_nothing(text: str, wrong: str) -> None:
    with pytest.raises(BadInput, match=wrong) as error:
        query.parse(text)
    assert error.value.given == text
    assert error.value.do


# --- differences ------------------------------------------------------------------------------------------------------


def test_differences_are_the_fields_that_differ(store: Store) -> None:
    runs = [finished(store, seed=seed, augment=augment) for seed, augment in ((0, []), (1, ["flip"]), (1, []))]
    assert spec_diff.differing(runs[:1]) == {}
    found = spec_diff.differing(runs)
    assert found.keys() == {"seed", "augment"}
    assert found["seed"] == ["0", "1", "1"]
    assert found["augment"][0] == spec_diff.NONE != found["augment"][1]
    other = finished(store, network={"kind": "mlp", "width": 6, "depth": 2})
    found = spec_diff.differing([runs[0], other])
    assert found["network.kind"] == ["cnn", "mlp"]
    assert "epochs" not in found


# --- studies ----------------------------------------------------------------------------------------------------------


def test_runs_are_listed_with_their_study(store: Store) -> None:
    written = {"student": tiny(epochs=1).model_dump(mode="json", exclude={"optimizer"}), "optimizers": ["sgd"]}
    spec = resolve_study(store, "optimizers", optimizers.parse_study({**written, "budgets": [1]}))
    study = lifecycle.create(store, "optimizers", spec)
    alone = store.create(resolve(store, tiny(seed=77)))
    wanted = study.wanted(store)
    own = [store.create(one).id for one in wanted[:2]]
    found = {row.id: row for row in membership.rows(store) if not row.in_zoo}
    assert wanted
    assert {id: (row.study, row.study_title) for id, row in found.items()} == {
        alone.id: ("", ""),
        **dict.fromkeys(own, (study.id, f"optimizers: {study.title}")),
    }
    assert {one["id"] for one in listed(store, "--filter", f"study:{study.id}")} == set(own)
    lifecycle.delete(store, study)
    assert all(row.study == "" for row in membership.rows(store))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_commands(store: Store) -> None:
    first, second = finished(store).id, finished(store, seed=1).id
    for line in (
        ("rename", first, "best"),
        ("note", "best", "two words"),
        ("tag", "best", second, "--add", "a", "--add", "b"),
        ("tag", second, "--remove", "a"),
    ):
        done = command("runs", *line, store=store)
        assert done.returncode == 0, done.stderr
    (found,) = listed(store, "--filter", "tag:a")
    assert {name: found[name] for name in ("id", "display_name", "notes", "tags")} == {
        "id": first,
        "display_name": "best",
        "notes": "two words",
        "tags": ["a", "b"],
    }
    assert [one["id"] for one in listed(store, "--filter", "tag:b sort:-seed")] == [second, first]
    shown = json.loads(command("runs", "show", "best", "--json", store=store).stdout)
    assert (shown["id"], shown["display_name"]) == (first, "best")
    difference = json.loads(command("runs", "diff", "best", second, "--json", store=store).stdout)
    assert difference == {"runs": [first, second], "fields": {"seed": ["0", "1"]}}
    assert "equal" in command("runs", "diff", first, first, store=store).stdout
    assert json.loads(command("runs", "delete", "best", second, "--json", store=store).stdout)["runs"] == [
        first,
        second,
    ]
    assert [one["id"] for one in listed(store) if one["id"] in (first, second)] == []
    trash = json.loads(command("runs", "list", "--trash", "--json", store=store).stdout)["trash"]
    assert {one["id"] for one in trash} == {first, second}
    assert command("runs", "restore", first, second, store=store).returncode == 0
    assert {first, second} <= {one["id"] for one in listed(store)}


@pytest.mark.parametrize(
    "line",
    [
        ("list", "--filter", "foo:1"),
        ("list", "--trash", "--filter", "x"),
        ("rename", "digits-student", "x"),
        ("rename", "0123", "x"),
        ("tag", "digits-student"),
        ("tag", "digits-student", "--add", "x"),
        ("diff", "digits-student"),
        ("delete", "digits-student"),
        ("restore", "0123"),
        ("restore", ""),
    ],
)
def test_commands_that_cannot_be(store: Store, line: tuple[str, ...]) -> None:
    done = command("runs", *line, store=store)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_the_trash_is_on_the_disk_of_the_runs(store: Store) -> None:
    run = finished(store)
    store.delete(run.id)
    assert Path(store.trash()[0].run.folder).parents[1] == store.runs_folder


def test_a_number_that_is_too_large_is_a_sentence(store: Store) -> None:
    for text in ("params<1e999999999999999999999", "params<1e99999999999999999999k"):
        with pytest.raises(BadInput, match=r"(?i)too large"):
            query.parse(text)


def test_a_run_that_is_named_twice_is_deleted_and_restored_once(store: Store) -> None:
    run, other = finished(store), finished(store, seed=1)
    done = command("runs", "delete", run.id, run.id[:6], "--json", store=store)
    assert (done.returncode, json.loads(done.stdout)["runs"]) == (0, [run.id])

    with pytest.raises(UnknownRun, match=r"(?i)in the trash .*runs restore"):
        store.run(run.id)
    failed = command("runs", "restore", run.id, "nope", store=store)
    assert failed.returncode == 2
    assert [one.id for one in store.trash()] == [run.id], "all are there, or none is restored"

    done = command("runs", "restore", run.id, run.id[:6], "--json", store=store)
    assert (done.returncode, len(json.loads(done.stdout)["runs"])) == (0, 1)
    assert {one.id for one in store.runs()} == {run.id, other.id}


def test_names_of_starter_models_and_bytes_that_are_no_text_are_refused(store: Store) -> None:
    run = finished(store)
    with pytest.raises(BadInput, match="starter model"):
        store.annotate([run.id], name="digits-teacher")
    with pytest.raises(BadInput, match="no text"):
        store.annotate([run.id], text="a\udcffb")
