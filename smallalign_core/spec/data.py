"""The dataset of a spec: its source, labels, splits, and unlabeled images beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from smallalign_core.spec._part import Part
from smallalign_core.spec.python import FILLED_IN, IDENTIFIER, KIND, Code

REST = "rest"
"""`unlabeled` of a dataset itself."""


ColumnName = Annotated[str | None, Field(min_length=1, max_length=200)]


class Columns(Part):
    """Columns of a table of labels, by their names (by their numbers from 1 where the table has no header)."""

    path: Annotated[ColumnName, Field(description="Column with the path of each image, relative to the table.")] = None
    label: Annotated[ColumnName, Field(description="Column with the class.")] = None
    split: Annotated[ColumnName, Field(description="Column with train, validation or test.")] = None


GROUP = "{group}"
"""What stands for the group in a pattern of `groups`."""


class PythonReader(Code):
    """Your own reader: a Python function of the source's path that yields images with their labels, and parts."""

    group: ClassVar[str] = "smallalign.readers"
    kind: Literal["python"] = "python"
    call: Annotated[str, Field(pattern=IDENTIFIER, max_length=100, description="Name of the function.")] = "read"


def _as_reader(given: object) -> object:
    """`reader.py` stands for the function `read` of that file."""
    return {"kind": KIND, "file": given} if isinstance(given, str) else given


class DataSpec(Part):
    """A dataset and its splits. Validation is split from train where the source brings none."""

    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1000,
            description="Dataset name, path of a folder, zip or table of labels, or hf://owner/name.",
        ),
    ]
    reader: Annotated[
        PythonReader | None,
        BeforeValidator(_as_reader),
        Field(description="A Python file that reads the source, instead of the library."),
    ] = None
    columns: Annotated[
        Columns, Field(description="Columns of a table of labels; empty: guessed from names and content.")
    ] = Columns()
    levels: Annotated[
        int, Field(ge=1, le=8, description="Levels of class folders: with 2, a/x and b/x are two classes.")
    ] = 1
    size: Annotated[
        int | None, Field(ge=4, le=512, description="Input size in pixels per side; empty: original size.")
    ] = None
    images: Annotated[
        int | None,
        Field(
            ge=2,
            description="Number of training images, stratified by class (at least one of each); empty: all.",
        ),
    ] = None
    validation: Annotated[
        float, Field(gt=0, le=0.5, description="Validation fraction, split from the training images.")
    ] = 0.1
    test: Annotated[float, Field(gt=0, le=0.5, description="Test fraction, where the source has no test split.")] = 0.2
    draw: Annotated[
        int,
        Field(ge=0, le=2**31 - 1, description="Seed of the random subset (`images`) and of the label noise (`noise`)."),
    ] = 0
    noise: Annotated[
        float,
        Field(
            ge=0,
            le=0.9,
            description="Label noise (control): fraction of training images that get a random wrong label.",
        ),
    ] = 0.0
    decisions: Annotated[
        str | None,
        Field(max_length=1000, description="Cleaning decisions file: images to drop or relabel."),
    ] = None
    groups: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="Group-aware split: images of one person, patient or original stay in one split. A regular "
            "expression for the group in a path, or a CSV file with the columns filename and group.",
        ),
    ] = None
    unlabeled: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=1000,
            description="Images without labels, for distillation: a folder, a zip of one, or `rest` for the training "
            "images that `images` leaves out. They join the training images, with the teacher's targets only.",
        ),
    ] = None
    skip_unreadable: Annotated[bool, Field(description="Skip unreadable images, however many; each is listed.")] = False
    fingerprint: Annotated[
        str | None,
        Field(pattern="^[0-9a-f]{16}$", description="Digest of the images; filled in.", json_schema_extra=FILLED_IN),
    ] = None
    unlabeled_fingerprint: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{16}$",
            description="Digest of the unlabeled images; filled in.",
            json_schema_extra=FILLED_IN,
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _no_labels(cls, given: object) -> object:
        """`unlabeled` without `source`: all images are unlabeled, written as a source that is its own `unlabeled`."""
        if isinstance(given, dict) and given.get("source") is None and given.get("unlabeled") not in (None, REST):
            return {**given, "source": given["unlabeled"]}
        return given

    @model_validator(mode="after")
    def _reader_alone(self) -> Self:
        if self.reader is not None and (self.columns != Columns() or self.levels > 1):
            raise ValueError("`reader` decides what is a label: leave `columns` and `levels` out")
        return self

    @model_validator(mode="after")
    def _rest_of_something(self) -> Self:
        if self.unlabeled == REST and self.images is None:
            raise ValueError(f"`unlabeled: {REST}` are the training images that `images` leaves out: set `images`")
        return self

    @property
    def has_labels(self) -> bool:
        """Whether there are labeled images: without, the source is its own `unlabeled`."""
        return self.unlabeled != self.source

    def labeled(self) -> DataSpec:
        """The same without unlabeled images, where there are others."""
        if not self.has_labels:
            return self
        return self.model_copy(update={"unlabeled": None, "unlabeled_fingerprint": None})

    def without_folders(self) -> DataSpec:
        """The same with the names of its files in place of their paths. A pattern of groups stays."""
        names = ["source", "unlabeled", "decisions", *(["groups"] if GROUP not in (self.groups or GROUP) else [])]
        found: dict[str, Any] = {name: Path(value).name for name in names if (value := getattr(self, name))}
        if self.reader is not None and self.reader.file is not None:
            found["reader"] = self.reader.model_copy(update={"file": Path(self.reader.file).name})
        return self.model_copy(update=found)
