"""The Python files of a run: their digests in its spec, and their copies in its folder.

A spec names a file by its path; its digest, which is part of the run's id, is filled in when the spec is resolved. The
run's folder gets a copy, so that the run can be loaded, resumed and exported when the file was edited or deleted.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smallalign_core.errors import BadInput
from smallalign_core.runs.queue import Access
from smallalign_core.spec import Code, Part, each_code, with_code
from smallalign_core.spec.python import copy_name
from smallalign_core.system import limits, usercode
from smallalign_core.system.files import write_folder

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Kind = TypeVar("Kind", bound=Part)
Request = TypeVar("Request", bound="DataclassInstance")


def filled(spec: Kind, by: Access) -> Kind:
    """`spec` with the digests of its Python files, and the versions of the packages of its entry points.

    Raises:
        Refused: the user may not run Python files, or this one is not allowed on this machine.
        BadInput, BadModel: a file cannot be read, or is not the one of its digest; no package has the entry point.
    """

    def fill(one: Code) -> Code:
        names_it = by.require_code()
        if one.file is None:
            _, package = usercode.entry_of(one.group, one.entry or "", one.package)
            return one.model_copy(update={"package": package})
        file = Path(one.file).expanduser().resolve()
        if one.sha256 is not None:
            usercode.require_trusted(one.sha256, file.name)
            return one
        limits.check_path(file, "the Python file")
        _, sha256 = usercode.read(file)
        if names_it:
            usercode.trust(sha256, file.name)
        usercode.require_trusted(sha256, file.name)
        return one.model_copy(update={"file": str(file), "sha256": sha256})

    return with_code(spec, fill)


def filled_request(request: Request, by: Access) -> Request:
    """A request as `filled`: in each of its fields that is a part of a spec, or a tuple of these.

    Raises:
        Refused, BadInput, BadModel: as `filled`.
    """
    changed: dict[str, Any] = {}
    for field in fields(request):
        value = getattr(request, field.name)
        if isinstance(value, Part):
            changed[field.name] = filled(value, by)
        elif isinstance(value, tuple) and any(isinstance(one, Part) for one in value):
            changed[field.name] = tuple(filled(one, by) for one in value)
    return replace(request, **changed)


def keep(spec: Part, folder: Path) -> None:
    """Copy the Python files of a resolved spec into a run's folder, unless it has them.

    Raises:
        BadModel: a file is not the one of its digest any more.
    """
    for one in each_code(spec):
        if one.file is None or one.sha256 is None or usercode.copy_in(folder, one.sha256) is not None:
            continue
        content = usercode.content_of(Path(one.file), one.sha256)
        write_folder(folder / usercode.FOLDER, {copy_name(one.file, one.sha256): content})


def located(spec: Kind, folder: Path) -> Kind:
    """A run's spec, in which a Python file that was edited or is gone is replaced by its copy in the run's folder."""

    def locate(one: Code) -> Code:
        if one.file is None:
            return one
        here = _digest(Path(one.file))
        if one.sha256 is None:  # of a published model, whose spec is written for people
            return one.model_copy(update={"sha256": here})
        kept = None if here == one.sha256 else usercode.copy_in(folder, one.sha256)
        return one if kept is None else one.model_copy(update={"file": str(kept)})

    return with_code(spec, locate)


def allow(spec: Part, folder: Path) -> list[tuple[Path, str, bool]]:
    """Let the Python files of a run's spec run on this machine.

    Returns:
        The path of each, its SHA-256, and whether it was allowed before.

    Raises:
        BadModel: a file is gone, and the run has no copy of it.
    """
    found = []
    for one in each_code(spec):
        if one.file is not None and one.sha256 is not None:
            usercode.content_of(Path(one.file), one.sha256, folder)
            found.append((Path(one.file), one.sha256, usercode.is_trusted(one.sha256)))
            usercode.trust(one.sha256, one.file_name)
    return found


def lacking(spec: Part, folder: Path) -> str:
    """The name of a Python file of a run's spec of which its folder has no intact copy; empty if it has all."""
    for one in each_code(spec):
        if one.file is not None and (one.sha256 is None or usercode.copy_in(folder, one.sha256) is None):
            return one.file_name
    return ""


def _digest(file: Path) -> str | None:
    try:
        return usercode.read(file)[1]
    except BadInput:
        return None


def copies(folder: Path) -> dict[str, bytes]:
    """The copies in a run's folder, by their paths relative to it."""
    found = sorted((folder / usercode.FOLDER).glob("*-*"))
    return {f"{usercode.FOLDER}/{file.name}": file.read_bytes() for file in found if file.is_file()}
