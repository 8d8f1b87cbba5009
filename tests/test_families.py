"""Every member of every family has what its kind needs: a member is added in one place, and nothing forgets it.

`optimizer_lacks` and its like return what a member lacks, in words; that they can complain is tested with members that
lack something.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import test_augment
import test_export
import test_optim
import test_pages
import torch
from conftest import ROOT, USER_AUGMENT, USER_FILE
from torch import nn

from pages.ui.compare import gallery
from pages.ui.data import quality
from pages.ui.export import panel
from pages.ui.landscape import charts as landscape_charts, panel as landscape_panel
from pages.ui.runs import run_view
from pages.ui.search.view import VIEW as SEARCH
from pages.ui.studies.optimizers import optimizer_picker
from pages.ui.studies.optimizers.view import VIEW as OPTIMIZERS
from pages.ui.studies.scaling import setup_form
from pages.ui.studies.scaling.view import VIEW as SCALING
from pages.ui.widgets import formatting, forms
from smallalign_core import augment, export, networks
from smallalign_core.analysis import compare, landscape
from smallalign_core.analysis.html_report import _page
from smallalign_core.augment import as_code, scaled
from smallalign_core.augment._parts import columns
from smallalign_core.cli._main import app
from smallalign_core.errors import BadSpec
from smallalign_core.export._parity import IN_A_BROWSER
from smallalign_core.runs.store import State
from smallalign_core.search._space import SIZES, Family
from smallalign_core.service.users import Role, User
from smallalign_core.spec import (
    Cnn,
    Code,
    Constant,
    DataSpec,
    LibraryNetwork,
    Loss,
    Network,
    Optimizer,
    Part,
    RunSpec,
    Schedule,
    choices,
    loss_kinds,
    members,
    parse,
    title,
)
from smallalign_core.spec._facts import Menu, OptimizerFacts
from smallalign_core.spec.augment import GROUPS, Augment, Blur, Flip, Mixing, MixUp, Several, _Augmentation
from smallalign_core.spec.balance import Balance, _Balance
from smallalign_core.spec.loss import CrossEntropy, HintonKd, OfLayers, _Loss, _OfLayers, labels_share, short_name
from smallalign_core.spec.optimizer import IN_EMA, IN_LOOKAHEAD, PLAIN, AdamW, Ema, Sgd, _Wrapper
from smallalign_core.spec.parts import FAMILIES, OwnNetwork
from smallalign_core.studies import ablation, kinds
from smallalign_core.studies.optimizers import label_of, offered
from smallalign_core.studies.run_status import DAMAGED
from smallalign_core.studies.scaling import _spec as scaling_spec
from smallalign_core.system import extras
from smallalign_core.training import losses, optim
from smallalign_core.training.losses import NetworkOutput

TESTS = Path(__file__).parent


def kind_of(member: type[Part]) -> str:
    return str(member.model_fields["kind"].default)


def instance(member: Any) -> Any:
    """A member with its defaults; the user's own need a file."""
    return member(file=str(USER_FILE)) if issubclass(member, Code) else member()


def all_of(family: Any) -> Iterator[Any]:
    for member in members(family):
        yield pytest.param(member, id=kind_of(member))


def spelled(parts: Iterable[Any]) -> set[str]:
    """The kinds that test cases name, in any spelling and at any depth."""
    found = set()
    for part in parts:
        while part is not None:
            text = part if isinstance(part, str) else part["kind"]
            found.add(text.partition(":")[0])
            part = None if isinstance(part, str) else part.get("inner")
    return found


def written_in(member: type[Part], *files: str) -> bool:
    """Whether a test of the family names this member: its class, or its kind as text."""
    text = "".join((TESTS / file).read_text() for file in files)
    return bool(re.search(rf'\b{member.__name__}\b|"{kind_of(member)}"', text))


# --- any part of a spec -----------------------------------------------------------------------------------------------


def lacks(member: type[Part]) -> list[str]:
    """What any member of any family needs: words for a menu, a documented default and help for each field."""
    found = []
    kind, doc = member.model_fields.get("kind"), (member.__doc__ or "").strip()
    if kind is None or get_args(kind.annotation) != (kind.default,):
        return ["`kind` is no literal that is its own default"]
    if not doc or not doc.endswith((".", "!", "?")):
        found.append("no docstring: it is the title and the caption of its form")
    elif len(forms.kind_label(member)) > 80:
        found.append("the docstring does not begin with a short title")
    for name, field in member.model_fields.items():
        if name != "kind" and not field.description:
            found.append(f"field {name} has no description")
        if name != "kind" and field.is_required() and not issubclass(member, LibraryNetwork):
            found.append(f"field {name} has no default")
    return found


@pytest.mark.parametrize("member", [one for family in FAMILIES for one in all_of(family)])
def test_every_member_has_words_and_documented_defaults(member: type[Part]) -> None:
    assert not lacks(member)


def heirs(base: type) -> Iterator[type[Part]]:
    """The classes of our own below `base` that name their kind."""
    for one in base.__subclasses__():
        kind = one.model_fields.get("kind")
        if one.__module__.startswith("smallalign_core.") and kind and get_args(kind.annotation) == (kind.default,):
            yield one
        yield from heirs(one)


@pytest.mark.parametrize(
    ("base", "family"),
    [
        (OptimizerFacts, Optimizer),
        (_Loss, Loss),
        (_Augmentation, Augment),
        (LibraryNetwork, Network),
        (_Balance, Balance),
    ],
)
def test_no_class_is_left_out_of_its_union(base: type, family: Any) -> None:
    assert {one.__name__ for one in heirs(base)} <= {one.__name__ for one in members(family)}


def test_kinds_are_unique_over_all_families() -> None:
    kinds = [kind for family in FAMILIES for kind in choices(family) if kind != "python"]
    assert len(kinds) == len(set(kinds))


def own(family: Any) -> list[type[Code]]:
    return [member for member in members(family) if issubclass(member, Code)]


@pytest.mark.parametrize("member", [*own(Network), *own(Loss), *own(Augment)])
def test_the_users_own_have_entry_points_and_are_for_the_owner(
    member: type[Code], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kind_of(member) == "python"
    assert member.group.startswith("smallalign.")
    for role in Role:
        monkeypatch.setattr(forms.auth, "current_user", lambda role=role: User("somebody", role))
        assert (member in forms.offered([member, Cnn])) == (role is Role.LOCAL)
        assert Cnn in forms.offered([member, Cnn])


# --- optimizers -------------------------------------------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
        self.register_buffer("statistics", torch.zeros(8))


def optimizer_lacks(member: type[OptimizerFacts]) -> list[str]:
    found = [f"no {fact}" for fact in ("label", "menus", "copies", "library_rate") if not hasattr(member, fact)]
    if found:
        return found
    if member.library_rate is None and not member.untuned:
        found.append("neither a library_rate to begin a search with nor a reason in `untuned`")
    if member.library_rate is not None and "lr" not in member.model_fields:
        found.append("a library_rate and no field `lr`")
    if not set(member.menus) <= set(get_args(Menu)):
        found.append(f"no such menu: {member.menus}")
    if "hands-off" not in member.menus and member.untuned and member.closure != "losses" and not is_wrapper(member):
        found.append("it is not tuned, and not offered to be used as it is")
    if member.package is not None and member.package not in extras.EXTRA_OF:
        found.append(f"package {member.package} is in no extra")
    if member.schedule is not None and not member.wrong_schedule:
        found.append("it works with one schedule only and has no sentence for others")
    if kind_of(member) not in spelled(test_optim.STACKS):
        found.append("no case among STACKS of tests/test_optim.py: resumed exactly, memory as counted")
    return found


def is_wrapper(member: type[OptimizerFacts]) -> bool:
    return issubclass(member, _Wrapper)


@pytest.mark.parametrize("member", all_of(Optimizer))
def test_an_optimizer_has_all_its_facts(member: type[OptimizerFacts]) -> None:
    assert not optimizer_lacks(member)
    assert member.label in label_of(member())  # type: ignore[arg-type]


BUILT = [
    pytest.param(one, id=kind_of(one), marks=[pytest.mark.slow] if one.package == "evotorch" else [])
    for one in members(Optimizer)
]


@pytest.mark.parametrize("member", BUILT)
def test_an_optimizer_is_built_and_its_memory_counted(member: type[OptimizerFacts]) -> None:
    model, spec = Tiny(), member()
    made = optim.build(spec, model, 10, head=model.head)  # type: ignore[arg-type]
    assert sum(len(group["params"]) for group in made.param_groups) == 4
    weights = 4 * sum(weight.numel() for weight in model.parameters())
    wrapped = getattr(spec, "inner", None)
    inner = optim.state_bytes(wrapped, model, head=model.head) if wrapped else 0
    assert optim.state_bytes(spec, model, head=model.head) - inner >= weights * member.copies // 2  # type: ignore[arg-type]


@pytest.mark.parametrize("member", all_of(Optimizer))
def test_an_optimizer_is_offered_where_it_says(member: type[OptimizerFacts]) -> None:
    shown = {"tuned": optimizer_picker.SHORT, "more": optimizer_picker.MORE, "hands-off": optimizer_picker.FIXED}
    assert set(shown) == set(get_args(Menu))
    for menu, kept in shown.items():
        there = any(one.kind == kind_of(member) for one in kept)
        assert there or menu not in member.menus
    assert member in members(Optimizer)  # what the form that builds any optimizer offers


def test_the_form_begins_with_what_a_study_begins_with() -> None:
    assert set(optimizer_picker.USUAL) <= set(offered("tuned"))
    assert optimizer_picker.REFERENCE.library_rate is not None


@pytest.mark.parametrize("outer", ["ema", "lookahead", "sam"])
@pytest.mark.parametrize("member", all_of(Optimizer))
def test_a_wrapper_holds_an_optimizer_or_refuses_it_in_words(member: type[OptimizerFacts], outer: str) -> None:
    spec = {
        "data": "digits",
        "network": "cnn",
        "teacher": "t",
        "loss": "kd",
        "schedule": {"kind": "constant", "warmup": 0},
        "optimizer": {"kind": outer, "inner": kind_of(member)},
    }
    if member in get_args({"ema": IN_EMA, "lookahead": IN_LOOKAHEAD, "sam": PLAIN}[outer]):
        assert parse(spec).optimizer.inner.kind == kind_of(member)  # type: ignore[union-attr]
    else:
        with pytest.raises(BadSpec, match=f"`{kind_of(member)}`") as caught:
            parse(spec)
        assert "{" not in caught.value.wrong


class _Odd(OptimizerFacts):
    """An optimizer that lacks something."""

    label = "Odd"
    menus = ("tuned",)
    copies = 2
    library_rate = 1e-3
    kind: Literal["odd"] = "odd"
    lr: float = 0.1


def but(**facts: Any) -> type[OptimizerFacts]:
    return type("Odd", (_Odd,), {"__module__": __name__, "__doc__": _Odd.__doc__, **facts})


class _Bare(OptimizerFacts):
    kind: Literal["bare"] = "bare"


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (_Odd, "no case among STACKS"),
        (_Bare, "no label"),
        (_Bare, "no menus"),
        (_Bare, "no copies"),
        (_Bare, "no library_rate"),
        (but(library_rate=None), "neither a library_rate"),
        (but(library_rate=None, untuned="why"), "not offered to be used as it is"),
        (but(menus=("elsewhere",)), "no such menu"),
        (but(package="nowhere"), "is in no extra"),
        (but(schedule=Constant()), "no sentence"),
    ],
)
def test_an_optimizer_that_lacks_something_is_noticed(member: type[OptimizerFacts], complaint: str) -> None:
    assert any(complaint in said for said in optimizer_lacks(member))


def test_an_optimizer_without_a_case_in_build_is_noticed() -> None:
    with pytest.raises(AssertionError):
        optim.build(_Odd(), Tiny())  # type: ignore[arg-type]
    assert lacks(_Odd) == ["field lr has no description"]
    assert "no docstring: it is the title and the caption of its form" in lacks(_Bare)


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", all_of(Schedule))
def test_a_schedule_is_computed_at_every_step(member: type[Part]) -> None:
    found = [optim.factor(member(), step, 20) for step in range(20)]  # type: ignore[arg-type]
    assert all(0 < factor <= 1 for factor in found)
    assert written_in(member, "test_optim.py", "test_train.py", "test_spec.py")


def test_a_schedule_without_a_formula_is_noticed() -> None:
    class Fake(Constant):
        pass

    class Other(Part):
        warmup: float = 0.0

    assert optim.factor(Fake(), 10, 20) == 1.0
    with pytest.raises(AssertionError):
        optim.factor(Other(), 10, 20)  # type: ignore[arg-type]


# --- losses -----------------------------------------------------------------------------------------------------------


def outputs(loss: Any) -> tuple[Any, NetworkOutput, NetworkOutput]:
    draw = torch.Generator().manual_seed(0)
    logits = [torch.randn(8, 10, generator=draw) for _ in range(2)]
    if not isinstance(loss, OfLayers):
        return loss, NetworkOutput(logits[0]), NetworkOutput(logits[1])
    maps = [torch.randn(8, channels, 8, 8, generator=draw) for channels in (4, 6)]
    loss = loss.model_copy(update={"student_layer": "a", "teacher_layer": "b"})
    return loss, NetworkOutput(logits[0], {"a": maps[0]}), NetworkOutput(logits[1], {"b": maps[1]})


def loss_lacks(member: type[_Loss]) -> list[str]:
    found = []
    if not written_in(member, "test_losses.py", "test_losses_layers.py", "test_embedding.py", "test_python_files.py"):
        found.append("no contract in tests/test_losses.py or tests/test_losses_layers.py")
    if issubclass(member, _OfLayers) and member not in get_args(OfLayers):
        found.append("it compares layers and is not in OfLayers")
    if (
        member.uses_teacher
        and not issubclass(member, Code)
        and not re.search(r"\b(19|20)\d\d\b|tutorials", member.__doc__ or "")
    ):
        found.append("the docstring names no paper and year")
    loss, student, teacher = outputs(instance(member))
    try:
        losses.check(loss, classes=10, batch=8, mixed=False)
        companion = losses.projector(loss, student, teacher)
        terms = losses.terms(loss, student, teacher, torch.arange(8), companion=companion)
        share, said = labels_share(loss), short_name(loss)
    except AssertionError:
        return [*found, "no case in term (training/losses/_logits.py) or labels_share (spec/loss.py)"]
    if not terms or not all(term.isfinite() for term in terms.values()):
        found.append("its terms are none or not finite")
    if member.uses_teacher != bool(set(terms) - {"labels"}):
        found.append("uses_teacher is not what its terms say")
    if not said.startswith(kind_of(member)) or share < 0:
        found.append("no short name, or no share of the labels")
    return found


@pytest.mark.parametrize("member", all_of(Loss))
def test_a_loss_has_all_it_needs(member: type[_Loss]) -> None:
    assert not loss_lacks(member)
    assert (member in loss_kinds(taught=True)) != (member in loss_kinds(taught=False))


class _Silent(_Loss):
    """A loss that nothing computes."""

    kind: Literal["silent"] = "silent"


class _Deaf(HintonKd):
    """A loss that says that no teacher is needed (2026)."""

    uses_teacher = False


class _Apart(_OfLayers):
    """A loss of layers that is not listed (2026)."""

    kind: Literal["apart"] = "apart"


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (_Silent, "no contract"),
        (_Silent, "no case in"),
        (_Silent, "no paper"),
        (_Deaf, "uses_teacher"),
        (_Apart, "not in OfLayers"),
        (_Apart, "no case in"),
    ],
)
def test_a_loss_that_lacks_something_is_noticed(member: type[_Loss], complaint: str) -> None:
    assert any(complaint in said for said in loss_lacks(member))


# --- class balance ----------------------------------------------------------------------------------------------------


def balance_lacks(member: type[_Balance]) -> list[str]:
    found = [] if written_in(member, "test_balance.py") else ["no contract in tests/test_balance.py"]
    spec, counts = member(), [60, 30, 10]
    try:
        made = losses.class_balance(spec, counts)  # type: ignore[arg-type]
    except AssertionError:
        return [*found, "no case in class_balance"]
    changes = made.weights is not None or made.offset is not None
    run = RunSpec(data=DataSpec(source="digits"), network={"kind": "cnn"}, balance=spec)
    if member.of_labels != changes:
        found.append("`of_labels` is not what it does to the label loss")
    if not changes and kind_of(member) != "none" and run.sampling is None:
        found.append("it changes neither the label loss nor the sampling")
    return found


@pytest.mark.parametrize("member", all_of(Balance))
def test_a_balance_has_all_it_needs(member: type[_Balance]) -> None:
    assert not balance_lacks(member)


class _Level(_Balance):
    """A balance that nothing computes."""

    kind: Literal["level"] = "level"


def test_a_balance_that_lacks_something_is_noticed() -> None:
    assert balance_lacks(_Level) == ["no contract in tests/test_balance.py", "no case in class_balance"]


# --- networks ---------------------------------------------------------------------------------------------------------


def network_lacks(member: type[Part]) -> list[str]:
    found = []
    if kind_of(member) not in spelled([*test_export.OWN, *test_export.BORROWED]):
        found.append("no case in tests/test_export.py: every network is exported in every precision")
    if issubclass(member, LibraryNetwork):
        return found
    spec: Any = instance(member)
    try:
        made = networks.build(spec, ["a", "b", "c"], (3, 16, 16), mean=[0.5] * 3, std=[0.5] * 3)
    except AssertionError:
        return [*found, "no case in networks._own.body"]
    if made.eval()(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)).shape != (2, 3):
        found.append("it gives no logits [N, classes]")
    if networks.head(made).get_parameter("weight").shape[0] != 3 or not networks.measure(made).macs:
        found.append("it has no head, or no cost")
    run = RunSpec(data=DataSpec(source="digits"), network=spec)
    if kind_of(member) not in title(run) and not (issubclass(member, Code) and spec.shown in title(run)):
        found.append("it is not in the title of a run")
    if member in get_args(OwnNetwork) and kind_of(member) not in SIZES:
        found.append("no widths and depths in SIZES of search/_space.py: no search for the smallest model tries it")
    return found


@pytest.mark.parametrize("member", all_of(Network))
def test_a_network_has_all_it_needs(member: type[Part]) -> None:
    assert not network_lacks(member)


def test_an_own_network_that_no_search_tries_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SIZES, "cnn")
    assert network_lacks(Cnn) == [
        "no widths and depths in SIZES of search/_space.py: no search for the smallest model tries it"
    ]


class _Unbuilt(Part):
    """A network that nothing builds."""

    kind: Literal["unbuilt"] = "unbuilt"
    size: int | None = None


def test_a_network_that_lacks_something_is_noticed() -> None:
    said = network_lacks(_Unbuilt)
    assert any("tests/test_export.py" in one for one in said)
    assert any("_own.body" in one for one in said)


# --- augmentations ----------------------------------------------------------------------------------------------------


def augmentation_lacks(member: type[_Augmentation]) -> list[str]:
    found = []
    groups = [heading for heading, group in GROUPS.items() if member in group]
    if len(groups) != 1:
        found.append(f"it is in {len(groups)} groups of the menu")
    amounts = getattr(member, "amounts", ())
    if not amounts or not set(amounts) <= set(member.model_fields):
        found.append("no amounts: fields that carry its strength")
    several = member in get_args(Several)
    if not several and not hasattr(member, "draws"):
        found.append("no draws: how many random numbers an image it takes")
    if not several and (member in get_args(Mixing)) == bool(getattr(member, "draws", 0)):
        found.append("draws an image are of those that mix nothing")
    if "probability" not in member.model_fields:
        found.append("no probability")
    if found:
        return found
    file = {"file": str(USER_AUGMENT)} if issubclass(member, Code) else {}
    policy: Any = (member.model_validate({"probability": 0.37, **file}),)
    try:
        code = as_code(policy, size=(32, 32), classes=10)
        if code.count("0.37") != 1 or code.count("v2.") < 2:
            found.append("its torchvision code does not have its probability once")
        if columns(policy[0]) < 1 and member not in get_args(Mixing):
            found.append("nothing decides whether it is applied")
        if scaled(policy, 0.5) == policy or scaled(policy, 0.0):
            found.append("its strength changes nothing")
        augment.check(policy, (3, 32, 32))
    except AssertionError:
        found.append("no case in augment/_code.py")
    if kind_of(member) not in test_augment.KINDS:
        found.append("no case in tests/test_augment.py")
    return found


@pytest.mark.parametrize("member", all_of(Augment))
def test_an_augmentation_has_all_it_needs(member: type[_Augmentation]) -> None:
    assert not augmentation_lacks(member)


class _Nowhere(_Augmentation):
    """An augmentation that nothing draws."""

    kind: Literal["nowhere"] = "nowhere"
    probability: float = 0.5


class _Still(Flip):
    """One that counts no draws and whose amount is no field."""

    amounts = ("loudness",)
    draws = 0


class _Mixed(MixUp):
    """One that mixes, and counts draws."""

    draws = 3


@pytest.mark.parametrize(
    ("member", "complaint"),
    [
        (_Nowhere, "0 groups"),
        (_Nowhere, "no amounts"),
        (_Nowhere, "no draws"),
        (_Still, "no amounts"),
        (_Still, "draws an image"),
    ],
)
def test_an_augmentation_that_lacks_something_is_noticed(member: type[_Augmentation], complaint: str) -> None:
    assert any(complaint in said for said in augmentation_lacks(member))


def test_an_augmentation_without_code_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Undrawn(Part):
        kind: Literal["undrawn"] = "undrawn"
        probability: float = 0.5

    with pytest.raises(AssertionError):
        as_code((Undrawn(),), size=(8, 8), classes=2)  # type: ignore[arg-type]
    monkeypatch.setattr(Blur, "amounts", ())
    assert augmentation_lacks(Blur) == ["no amounts: fields that carry its strength"]


# --- studies, pages, precisions ---------------------------------------------------------------------------------------


def menu() -> dict[str, set[str]]:
    """The pages in the frame's menu, and what is given of each."""
    tree = ast.parse((ROOT / "pages" / "frame.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "st.Page"]
    return {ast.literal_eval(call.args[0]): {str(word.arg) for word in call.keywords} for call in calls}


def page_lacks(file: str) -> list[str]:
    given = menu().get(file)
    found = [] if given is not None else ["it is not in the menu of pages/frame.py"]
    found += [f"no {word} in the menu" for word in ("title", "icon", "help") if word not in (given or set())]
    if not (ROOT / "pages" / file).is_file():
        return [*found, "no such file"]
    if Path(file).stem not in test_pages.PAGES:
        found.append("tests/test_pages.py does not open it")
    return found


@pytest.mark.parametrize(
    "file", sorted({one.name for one in (ROOT / "pages").glob("*.py")} - {"frame.py"} | set(menu()))
)
def test_a_page_is_in_the_menu_and_opened_by_a_test(file: str) -> None:
    assert not page_lacks(file)


def test_a_page_that_lacks_something_is_noticed() -> None:
    assert page_lacks("nowhere.py") == [
        "it is not in the menu of pages/frame.py",
        "no title in the menu",
        "no icon in the menu",
        "no help in the menu",
        "no such file",
    ]


def study_lacks(kind: str) -> list[str]:
    """That a module has the functions of a kind is checked by mypy, with their types: see `StudyKind`."""
    found = []
    shown = {one.kind.name: one.kind for one in (OPTIMIZERS, SCALING, SEARCH)}
    if kind not in shown:
        found.append("no page shows it")
    elif page_lacks(shown[kind].page):
        found.append(f"its page lacks something: {page_lacks(shown[kind].page)}")
    verbs = {one.name or one.callback.__name__ for one in app.registered_commands if one.callback}
    if kind not in shown or shown[kind].verb not in verbs:
        found.append("no verb of the command line runs it")
    module = kinds.KINDS.get(kind)
    functions = [name for name in vars(kinds.StudyKind) if not name.startswith("_")]
    found += [f"no function {name}" for name in functions if not callable(getattr(module, name, None))]
    return found


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_kind_of_study_has_a_page_a_verb_and_all_functions(kind: str) -> None:
    assert not study_lacks(kind)


def test_a_kind_of_study_that_lacks_something_is_noticed() -> None:
    said = study_lacks("distillation")
    assert said[:2] == ["no page shows it", "no verb of the command line runs it"]
    assert len(said) == 2 + 9


def precision_lacks(name: Any) -> list[str]:
    found = [] if name in export.PRECISIONS else ["it is not in PRECISIONS"]
    found += [] if name in export.GATES and name in IN_A_BROWSER else ["no gate for its parity"]
    found += [] if name in panel.PRECISIONS else ["no label on the page Export"]
    return found


@pytest.mark.parametrize("name", sorted({*export.PRECISIONS, *export.GATES, *IN_A_BROWSER, *panel.PRECISIONS}))
def test_an_export_precision_has_a_gate_and_a_label(name: str) -> None:
    assert not precision_lacks(name)


def test_a_precision_that_lacks_something_is_noticed() -> None:
    assert len(precision_lacks("int2")) == 3


# --- lists of labels beside a list of the library ---------------------------------------------------------------------

LISTS: dict[str, tuple[Iterable[Any], Iterable[Any]]] = {
    "states of a run": (formatting.STATES, [*State, DAMAGED]),
    "batch norms of a landscape": (landscape_charts.NORMS, landscape.NORMS),
    "batch norms of a landscape, in short": (landscape_panel.SHORT, landscape.NORMS),
    "measures of a landscape": (landscape_panel.MEASURES, landscape.MEASURES),
    "measures of a landscape, as a type": (get_args(landscape.Measure), landscape.MEASURES),
    "kinds of an image in a report": (_page.TITLES, compare.KINDS),
    "kinds of an image in the gallery": (
        {kind for _, kinds in gallery.KINDS.values() for kind in kinds},
        compare.KINDS,
    ),
    "filters of the gallery": (gallery.ABOUT, gallery.KINDS),
    "findings about data": (quality.NOTHING, [*quality.FOUND, quality.PAIRS]),
    "what a recipe adds, on the page": (setup_form.ADDS, scaling_spec.PROCESSES),
    "what a recipe adds, in a report": (scaling_spec.LABELS, scaling_spec.PROCESSES),
    "calibrations of int8": ([name for name in panel.CALIBRATIONS if name], export.CALIBRATIONS),
    "families of a search": (get_args(Family), SIZES),
    "what an ablation leaves out": (ablation.CONTROLS, get_args(ablation.What)),
    "what an ablation of a run leaves out": ([*run_view.CONTROLS, "augment"], ablation.CONTROLS),  # Augment has its own
}


@pytest.mark.parametrize("what", LISTS)
def test_a_list_of_labels_has_every_member(what: str) -> None:
    labels, members_ = (set(map(str, one)) for one in LISTS[what])
    assert labels == members_


def test_members_that_are_checked_are_those_that_there_are() -> None:
    """The families are not empty, and the checks see them: one of each, by name."""
    assert {Sgd, AdamW, Ema} <= set(members(Optimizer))
    assert {CrossEntropy, HintonKd} <= set(members(Loss))
    assert all(len(members(family)) > 5 for family in (Optimizer, Loss, Network, Augment))
