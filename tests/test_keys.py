"""The session's keys: no two features share one by accident, and no value of another page or link breaks a field."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.ui.app import keys
from pages.ui.widgets import url_state
from tests.conftest import ROOT, Show

PAGES = ROOT / "pages"
SHARED = {
    "data": "the dataset in hand goes along from page to page",
    "student": "one form of a student, on the three pages that ask for one",
    "strength": "the risk panel's suggestion sets the page's field",
    "runs-selected": "the list sets the ticked runs, and what is done with them clears them",
    "runs-deleted": "a run deleted from its own page is offered for undo in the list",
    "more-teachers": "Distil's further teachers: the page fills them from a run, and the panel asks for them",
}
"""Keys that more than one module reads or writes on purpose."""
WIDGETS = {"found"}
"""Keys of widgets that are read where they are not drawn, in the same module."""


def modules() -> dict[str, ast.Module]:
    """The dashboard's modules by their names, parsed."""
    files = [*PAGES.glob("*.py"), *(PAGES / "ui").rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): ast.parse(file.read_text()) for file in files}


def constants(tree: ast.Module) -> dict[str, str]:
    """A module's names of texts."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            pairs = [(target, node.value) for target in node.targets]
            if isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(node.targets[0].elts, node.value.elts, strict=True))
            for target, value in pairs:
                if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[target.id] = value.value
    return found


def text_of(node: ast.expr, known: dict[str, str]) -> str | None:
    """What an expression says, holes as `*`; None where it is not written out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "keys":
        return str(getattr(keys, node.attr))
    if isinstance(node, ast.JoinedStr):
        parts = [
            part.value
            if isinstance(part, ast.Constant)
            else text_of(part.value, known) or "*"
            if isinstance(part, ast.FormattedValue)
            else "*"
            for part in node.values
        ]
        return None if str(parts[0]).startswith("*") else "".join(map(str, parts))
    return None


def keys_of(tree: ast.Module) -> tuple[set[str], set[str]]:
    """(keys in the session as they are, keys that `url_state` makes the page's own) that a module uses."""
    known, plain, own = constants(tree), set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "st.session_state":
            plain.add(text_of(node.slice, known) or "")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called.startswith("st.session_state.") and node.args:
            plain.add(text_of(node.args[0], known) or "")
        if called in ("url_state.own", "url_state.keep", "url_state.changed", "url_state.kept") and node.args:
            own.add(text_of(node.args[0], known) or "")
        for given in node.keywords:
            if given.arg == "key" and (text := text_of(given.value, known)):
                (own if called.startswith("url_state.") else plain).add(text)
    return plain - {""}, own - {""}


def drawn_by(page: str, trees: dict[str, ast.Module]) -> set[str]:
    """The modules that a page imports, at whatever distance."""
    found, todo = set[str](), [page]
    while todo:
        if (name := todo.pop()) in found or name not in trees:
            continue
        found.add(name)
        for node in ast.walk(trees[name]):
            if isinstance(node, ast.ImportFrom) and node.module:
                todo += [node.module, f"{node.module}.__init__", *(f"{node.module}.{one.name}" for one in node.names)]
                todo += [f"{node.module}.{one.name}.__init__" for one in node.names]
    return found


def shared(used: dict[str, set[str]]) -> dict[str, list[str]]:
    """The keys that more than one module uses."""
    by_key: dict[str, set[str]] = defaultdict(set)
    for module, names in used.items():
        for key in names:
            by_key[key].add(module)
    return {key: sorted(names) for key, names in by_key.items() if len(names) > 1 and key not in SHARED}


@pytest.mark.slow
def test_no_two_features_use_one_key_of_the_session() -> None:
    trees = modules()
    every = {name: keys_of(tree) for name, tree in trees.items() if name != "pages.ui.widgets.url_state"}
    assert sum(len(plain) + len(own) for plain, own in every.values()) > 120, "the keys are found"

    assert not shared({name: plain for name, (plain, _) in every.items()})
    for file in PAGES.glob("*.py"):
        here = drawn_by(f"pages.{file.stem}", trees)
        assert len(here) > 3, file
        assert not shared({name: own for name, (_, own) in every.items() if name in here}), file


def test_what_features_remember_stands_in_one_list() -> None:
    """Keys of the session that no widget has for itself are names in `keys`, each another text."""
    known = {name: value for name, value in vars(keys).items() if name.isupper()}
    assert len(set(known.values())) == len(known) > 15
    for module, tree in modules().items():
        for node in ast.walk(tree):
            written: ast.expr | None = None
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "st.session_state":
                written = node.slice
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("st.session_state.") and node.args:
                written = node.args[0]
            if isinstance(written, ast.Constant):
                assert written.value in WIDGETS, f"{module} writes the key {written.value!r}: give it a name in `keys`"


def two_pages() -> None:
    """A page whose name is in the address; both have a field of each kind by the same names, with other options."""
    import streamlit as st

    from pages.ui.widgets import url_state

    first = st.query_params.get("p", "one") == "one"
    url_state.on_page("one" if first else "two")
    names = {"nll": "NLL", "error": "Error"} if first else {"accuracy": "Accuracy", "nll": "NLL"}
    found: list[object] = [url_state.kept("metric", names, next(iter(names)))]
    found += [url_state.switch("Metric", names, key="metric"), url_state.pick("Menu", names, key="menu")]
    found += [url_state.pick_some("Some", names, key="some", first=tuple(names))]
    found += [url_state.pick_number(st.number_input, "Draws", 3 if first else 10, 20, 1, key="draws", first=12)]
    opened = url_state.tabs(list(names.values()), key="part")
    found += [next(name for name, tab in opened.items() if tab.open)]
    found += [url_state.pick_page(9 if first else 2), url_state.pick_text("Filter", key="filter")]
    st.session_state["found"] = found


def opened(app: AppTest, **query: str) -> list[Any]:
    app.query_params.clear()
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return list(app.session_state["found"])


def test_pages_with_fields_of_one_name_keep_a_value_each() -> None:
    app = AppTest.from_function(two_pages)
    chosen = {"metric": "error", "menu": "error", "some": "error", "draws": "4", "part": "Error", "page": "7"}
    said = ["error", "error", "error", ["error"], 4, "Error", 7, "mlp"]
    assert opened(app, p="one", filter="mlp", **chosen)[1:] == said[1:]

    assert opened(app, p="two") == ["accuracy", "accuracy", "accuracy", ["accuracy", "nll"], 12, "Accuracy", 1, ""]
    kept = opened(app, p="one")
    assert [kept[at] for at in (0, 1, 3, 4, 7)] == [said[at] for at in (0, 1, 3, 4, 7)]


@pytest.mark.parametrize("page", ["one", "two"])
def test_what_an_address_names_that_is_no_option_never_raises(page: str) -> None:
    app = AppTest.from_function(two_pages)
    usual = opened(app, p=page)
    for junk in ("", "?", "-1", "99999999999", "nan", "é", "a,b", "[1]"):
        wrong = dict.fromkeys(("metric", "menu", "some", "draws", "part", "page"), junk)
        assert opened(app, p=page, **wrong)[1:3] == usual[1:3], junk


def test_an_address_may_hold_the_text_of_an_option_as_older_links_do() -> None:
    assert opened(AppTest.from_function(two_pages), p="one", metric="Error", menu="Error")[1:3] == ["error", "error"]


def a_menu() -> None:
    """A menu of runs whose options and default come from the test."""
    import streamlit as st

    from pages.ui.widgets import url_state

    names, first = st.session_state["offered"]
    st.session_state["found"] = url_state.pick("Teacher", {"none": "None"} | names, key="teacher", first=first)


A, B = {"a": "A"}, {"a": "A", "b": "B"}


def menu(app: AppTest, names: dict[str, str], first: str | None) -> tuple[str, str, int]:
    """(what is chosen, what the address says, the number of warnings)."""
    app.session_state["offered"] = (names, first)
    app.run()
    assert not app.exception
    return app.session_state["found"], "".join(app.query_params.get("teacher", "")), len(app.warning)


def test_a_run_that_is_not_there_yet_is_taken_once_it_is() -> None:
    """A link keeps naming it meanwhile, unless the user chooses another one."""
    app = AppTest.from_function(a_menu)
    app.query_params["teacher"] = "b"
    assert menu(app, {}, None) == ("none", "b", 1)
    assert menu(app, A, "a")[1:] == ("b", 1)
    assert menu(app, B, "a") == ("b", "b", 0)

    app = AppTest.from_function(a_menu)
    app.query_params["teacher"] = "b"
    assert menu(app, A, "a") == ("a", "b", 1)
    app.selectbox[0].select("none").run()
    assert menu(app, B, "a") == ("none", "none", 0)


def test_no_run_is_a_choice_only_where_there_was_one() -> None:
    app = AppTest.from_function(a_menu)
    assert menu(app, {}, None) == ("none", "", 0)
    assert menu(app, A, None) == ("none", "", 0)
    assert menu(app, A, "a") == ("a", "a", 0)

    app.selectbox[0].select("none").run()
    assert menu(app, B, "b") == ("none", "none", 0)

    app = AppTest.from_function(a_menu)
    menu(app, A, None)
    app.selectbox[0].select("a").run()
    assert menu(app, B, "b") == ("a", "a", 0)


JUNK = dict.fromkeys(
    (
        *("metric", "part", "tab", "split", "kind", "class", "cell", "also", "teacher", "student", "data"),
        *("seeds", "draws", "trials", "margin", "budgets", "recipes", "preset", "steps", "optimizers", "hands-off"),
        *("run", "precision", "strength", "epoch", "batch", "seed", "rows", "policy", "limit", "found", "at", "judge"),
    ),
    "no such thing",
)


def test_a_click_with_an_address_that_was_replaced_undoes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two quick clicks: the second is sent with the address from before the first."""
    monkeypatch.setattr(url_state, "LATE", 1e9)
    app = AppTest.from_function(two_pages)
    first = opened(app, p="one", menu="nll")
    app.selectbox[0].select("error").run()
    app.query_params["menu"] = "nll"
    app.number_input[0].set_value(7).run()
    assert app.session_state["found"][2] == "error" != first[2]
    assert app.query_params["menu"] in ("error", ["error"])

    monkeypatch.setattr(url_state, "LATE", -1.0)  # later it is a link, or a step back
    app.query_params["menu"] = "nll"
    app.run()
    assert app.session_state["found"][2] == "nll"


def ids(app: AppTest) -> dict[str, str]:
    """What the browser knows each widget of `two_pages` by."""
    widgets = (*app.selectbox, *app.number_input, *app.text_input, *app.button_group)
    (tabs,) = app.get("tab_container")
    return {str(one.key): one.proto.id for one in widgets} | {"tabs": tabs.proto.id}


def test_a_widget_with_another_value_is_the_same_widget() -> None:
    """Else a second click, made before the page has answered the first, goes to a widget that is no more."""
    app = AppTest.from_function(two_pages)
    opened(app, p="one")
    before = ids(app)
    assert len(before) > 4

    opened(app, menu="error", metric="error", some="nll", draws="4", filter="x", part="Error")
    assert ids(app) == before


@pytest.mark.slow
@pytest.mark.parametrize("page", ["data", "augment", "distil", "optimizers", "scaling", "compare"])
def test_every_page_opens_with_an_address_of_nonsense(page: str, shown: Show) -> None:
    shown(page, **(JUNK | {"data": "digits"}))
    shown(page, **JUNK)


def drawn(app: AppTest) -> dict[str, tuple[Any, Any]]:
    """(the value in the session, the value that the browser falls back to) of each widget of a page, by key."""
    found: dict[str, tuple[Any, Any]] = {}
    for one in (*app.selectbox, *app.number_input, *app.slider, *app.text_input, *app.toggle, *app.multiselect):
        default: Any = one.proto.default
        if one.type in ("slider", "multiselect"):
            default = list(default)
        elif one.type in ("selectbox", "number_input") and not one.proto.HasField("default"):
            default = None
        value: Any = one.value if one.type != "text_input" else one.value or ""
        if one.type == "selectbox":
            value = one.index
        elif one.type == "multiselect":
            value = one.indices
        elif one.type == "slider":
            value = [value] if isinstance(value, int | float) else list(value)
        found[str(one.key)] = (value, default)
    for group in app.button_group:
        found[str(group.key)] = (list(group.indices), list(group.proto.default))
    return found


STUDENT = '{"network":{"kind":"resnet","width":12,"depth":2},"epochs":7,"batch":50,"data":{"images":300}}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "link"),
    [
        ("augment", {"policy": '[{"kind":"rotate","degrees":45}]', "strength": "0.5", "seed": "7", "rows": "3,4,5"}),
        ("distil", {"policy": '[{"kind":"rotate","degrees":20}]', "seed": "5", "teacher": "digits-teacher"}),
        ("optimizers", {"student": STUDENT, "seeds": "5", "margin": "0.5", "budgets": "1,4"}),
        ("scaling", {"student": STUDENT, "recipes": "augment,distil", "draws": "5", "preset": "full"}),
        ("compare", {"teacher": "digits-teacher", "student": "digits-student", "tab": "Calibration"}),
        ("shrink", {"kb": "30", "accuracy": "85", "minutes": "3", "unit": "of teacher"}),
        ("export", {"run": "digits-teacher", "precision": "int8"}),
    ],
)
def test_the_browser_falls_back_to_the_value_in_the_session(page: str, link: dict[str, str], shown: Show) -> None:
    """A click may end the script before the browser has drawn a value set through the session.

    It then reports the widget's default as the user's own choice: here once in a dozen visits, on a busy machine.
    """
    found = drawn(shown(page, data="digits", **link))

    assert found
    assert {key: pair for key, pair in found.items() if pair[0] != pytest.approx(pair[1])} == {}


def test_the_files_are_all_read() -> None:
    assert {"pages.runs", "pages.ui.widgets.url_state", "pages.ui.compare.gallery"} <= set(modules())
    assert Path(PAGES / "frame.py").is_file()
