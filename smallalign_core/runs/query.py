"""The language that lists of runs are filtered and sorted with: `teacher:resnet acc>0.95 -tag:old sort:-acc`.

All terms must hold. A term is one of

    word            in the name, title, state, dataset, tags, teacher, study or notes
    field:text      the field contains the text; of `tag` and `state`, is the text
    field=text      the field is the text; also !=
    field>number    also >=, <, <=, =, !=; a number may end in %, k or M; `created>2026-11-30`
    -term           the term does not hold
    sort:field      ascending; `sort:-field` descending. Runs without the value come last

Upper and lower case are equal. Quotation marks keep spaces and operators together: `name:"my best"`. A run without the
value, such as an unfinished one without an accuracy, fulfills no comparison with it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from smallalign_core.errors import BadInput
from smallalign_core.runs.table import RunRow

TEXT: dict[str, Callable[[RunRow], Sequence[str]]] = {
    "name": lambda row: (row.called, row.name),
    "id": lambda row: (row.id,),
    "title": lambda row: (row.title,),
    "state": lambda row: (row.state,),
    "tag": lambda row: row.tags,
    "notes": lambda row: (row.notes,),
    "data": lambda row: (row.source,),
    "network": lambda row: (row.network,),
    "teacher": lambda row: (row.teacher_name, row.teacher or ""),
    "loss": lambda row: (row.loss,),
    "optimizer": lambda row: (row.optimizer,),
    "study": lambda row: (row.study, row.study_title),
}
"""Fields with text, and their values; `tag` and `state` are matched as a whole."""
WHOLE = ("tag", "state")
NUMBERS: dict[str, Callable[[RunRow], float | None]] = {
    "acc": lambda row: row.accuracy,
    "macro": lambda row: row.macro,
    "val": lambda row: row.validation,
    "params": lambda row: row.params,
    "epochs": lambda row: row.epochs,
    "seed": lambda row: None if row.imported else row.seed,
    "seconds": lambda row: row.seconds,
    "created": lambda row: None if row.in_zoo else row.created,
}
"""Fields with a number: shares from 0 to 1, counts, seconds; `created` is compared with a date."""
ALIASES = {"accuracy": "acc", "parameters": "params", "dataset": "data", "tags": "tag", "validation": "val"}
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
    ":": operator.eq,
}
DAY = 86_400.0
UNITS = {"": 0, "%": -2, "k": 3, "m": 6}
"""Powers of ten."""
TERM = re.compile(r"(?P<no>-)?(?:(?P<field>[A-Za-z]+)(?P<sign>>=|<=|!=|[><=:]))?(?P<value>.*)", re.DOTALL)
WORDS = ("name", "title", "state", "data", "tag", "teacher", "study", "notes")
"""Fields that a word without a field is searched in."""


@dataclass(frozen=True)
class Query:
    """A parsed text.

    Attributes:
        tests: each holds for the rows that are kept.
        order: (field, descending) of each `sort:`, the most significant first.
        fields: the fields that are mentioned.
    """

    tests: tuple[Callable[[RunRow], bool], ...] = ()
    order: tuple[tuple[str, bool], ...] = ()
    fields: frozenset[str] = frozenset()

    def select(self, rows: Sequence[RunRow]) -> list[RunRow]:
        """The rows that fulfill it, in its order; in theirs where it has none."""
        found = [row for row in rows if all(test(row) for test in self.tests)]
        for field, descending in reversed(self.order):
            known = [row for row in found if _key(row, field) is not None]
            known.sort(key=lambda row: _key(row, field), reverse=descending)
            found = known + [row for row in found if _key(row, field) is None]
        return found


def parse(text: str) -> Query:
    """The query that a text means; an empty one keeps every row.

    Raises:
        BadInput: a field does not exist, a value is no number or date, or a quotation mark is not closed.
    """
    tests: list[Callable[[RunRow], bool]] = []
    order: list[tuple[str, bool]] = []
    fields: set[str] = set()
    for term in _terms(text):
        parts = TERM.fullmatch(term)
        assert parts is not None  # its last group takes anything
        field, sign, value = parts["field"], parts["sign"], _unquoted(parts["value"])
        if field is not None and field.lower() == "sort":
            name = _field(value.removeprefix("-"), term)
            order.append((name, value.startswith("-")))
            fields.add(name)
            continue
        if field is None:
            test = _word(value.lower())
        else:
            name = _field(field, term)
            test = _test(name, sign, value, term)
            fields.add(name)
        tests.append(_negated(test) if parts["no"] else test)
    return Query(tuple(tests), tuple(order), frozenset(fields))


def _terms(text: str) -> list[str]:
    """The terms of a text, with their quotation marks."""
    if text.count('"') % 2:
        raise BadInput("a quotation mark of the filter is not closed", given=text, do='write for example name:"my run"')
    return re.findall(r'(?:[^\s"]|"[^"]*")+', text)


def _unquoted(text: str) -> str:
    return text.replace('"', "")


def _field(name: str, term: str) -> str:
    known = ALIASES.get(name.lower(), name.lower())
    if known not in TEXT and known not in NUMBERS:
        raise BadInput(
            "the filter has no such field",
            given=term,
            do=f"use one of {', '.join((*TEXT, *NUMBERS))}, or put the term into quotation marks",
        )
    return known


def _word(word: str) -> Callable[[RunRow], bool]:
    return lambda row: any(word in value.lower() for name in WORDS for value in TEXT[name](row))


def _negated(test: Callable[[RunRow], bool]) -> Callable[[RunRow], bool]:
    return lambda row: not test(row)


def _test(field: str, sign: str, value: str, term: str) -> Callable[[RunRow], bool]:
    if not value:
        raise BadInput("a term of the filter has no value", given=term, do=f"write for example {field}{sign}value")
    return _text_test(field, sign, value.lower(), term) if field in TEXT else _number_test(field, sign, value, term)


def _text_test(field: str, sign: str, value: str, term: str) -> Callable[[RunRow], bool]:
    values = TEXT[field]
    if sign not in (":", "=", "!="):
        raise BadInput(f"{field} is text and has no order", given=term, do=f"write {field}:text or {field}=text")
    if sign == ":" and field not in WHOLE:
        return lambda row: any(value in one.lower() for one in values(row))
    return lambda row: any(value == one.lower() for one in values(row)) is (sign != "!=")


def _number_test(field: str, sign: str, value: str, term: str) -> Callable[[RunRow], bool]:
    compare, get, wanted = OPERATORS[sign], NUMBERS[field], _number(field, value, term)
    if field == "created" and sign in (":", "=") and len(value) == len("2026-11-30"):  # the whole day
        return lambda row: (found := get(row)) is not None and wanted <= found < wanted + DAY

    def test(row: RunRow) -> bool:
        found = get(row)
        return found is not None and compare(found, wanted)

    return test


def _number(field: str, value: str, term: str) -> float:
    if field == "created":
        try:
            return datetime.fromisoformat(value).astimezone().timestamp()
        except (ValueError, OverflowError):
            raise BadInput(
                "created is compared with a date", given=term, do="write for example created>2026-11-30"
            ) from None
    parts = re.fullmatch(r"([-+]?\d*\.?\d+(?:e[-+]?\d+)?)(%|k|m)?", value.lower())
    if parts is None:
        raise BadInput(f"{field} is compared with a number", given=term, do="write for example acc>0.95 or params<50k")
    try:
        return float(Decimal(parts[1]).scaleb(UNITS[parts[2] or ""]))  # 95% is 0.95 to the last bit
    except ArithmeticError:
        raise BadInput(f"the number that {field} is compared with is too large", given=term, do="shorten it") from None


def _key(row: RunRow, field: str) -> Any:
    """What a row is sorted by; None without a value."""
    if field in NUMBERS:
        return NUMBERS[field](row)
    return next((value.lower() for value in TEXT[field](row) if value), None)
