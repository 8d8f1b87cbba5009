"""The user's own Python: reading a file, whether it may run on this machine, importing it, and its errors in words.

A file runs only if its SHA-256 is allowed on this machine. Whoever names a file in a spec on the command line or in
Python allows it by that; a file that came with a run folder of another machine runs only after `runs trust`. The list
is kept outside of stores, since a store may come from elsewhere too.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import inspect
import linecache
import logging
import os
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from smallalign_core.errors import BadInput, BadModel, Refused, SmallAlignError, of_system
from smallalign_core.system import recorded

log = logging.getLogger("smallalign")

TRUSTED = "SMALLALIGN_TRUSTED"
"""Environment variable: the file with the digests of Python files that may run."""
MOST_BYTES = 1_000_000
FOLDER = "code"
"""The folder of a run with copies of its Python files."""

_ALLOWED: set[str] = set()
_FORBIDDEN: ContextVar[bool] = ContextVar("forbidden", default=False)
_FILES: dict[str, str] = {}
"""Names under which files were compiled, and what to call them."""
_MODULES: dict[str, types.ModuleType] = {}


def read(file: Path) -> tuple[bytes, str]:
    """(content, SHA-256) of a Python file.

    Raises:
        BadInput: it is missing, not a regular file, too large, or not text.
    """
    do = "name a Python file; a relative path is relative to the folder of the spec"
    try:
        if not file.is_file():
            missing = "is not a regular file" if file.exists() else "does not exist"
            raise BadInput(f"the Python file {missing}", given=file, do=do)
        if file.stat().st_size > MOST_BYTES:
            raise BadInput(f"the Python file is larger than {MOST_BYTES / 1e6:g} MB", given=file, do=do)
        content = file.read_bytes()
        content.decode("utf-8")
    except UnicodeDecodeError:
        raise BadInput("the Python file is not UTF-8 text", given=file, do=do) from None
    except (OSError, ValueError) as error:
        known = of_system(error)
        raise BadInput(
            f"the Python file cannot be read: {known.wrong if known else error}", given=file, do=do
        ) from None
    return content, hashlib.sha256(content).hexdigest()


# --- copies beside a run ----------------------------------------------------------------------------------------------


def copy_in(folder: Path, sha256: str) -> Path | None:
    """The copy in a run's folder of the file with this digest; None if it has none, or that is damaged."""
    for file in sorted((folder / FOLDER).glob(f"{sha256[:16]}-*")):
        with contextlib.suppress(BadInput):
            if read(file)[1] == sha256:
                return file
    return None


def content_of(file: Path, sha256: str, folder: Path | None = None) -> bytes:
    """The content of the file with this digest: of the file itself, or of its copy in a run's folder.

    Raises:
        BadModel: neither has it.
    """
    with contextlib.suppress(BadInput):
        content, found = read(file)
        if found == sha256:
            return content
    if folder is not None and (kept := copy_in(folder, sha256)) is not None:
        return kept.read_bytes()
    raise BadModel(
        "the Python file is gone or was edited, and there is no copy of the one that the run was made with",
        given=file,
        do="restore the file, or submit the spec again: an edited file makes another run",
    )


# --- what may run -----------------------------------------------------------------------------------------------------


def trusted_list() -> Path:
    """The file with the digests of Python files that may run on this machine for this user."""
    if given := os.environ.get(TRUSTED):
        return Path(given)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "smallalign" / "trusted-python"


def is_trusted(sha256: str) -> bool:
    """Whether the file with this digest may run."""
    return sha256 in _ALLOWED or sha256 in _listed()


def count_trusted() -> int:
    """How many files are in the list."""
    return len(_listed())


def _listed() -> set[str]:
    with contextlib.suppress(OSError, ValueError):
        return {line.split(maxsplit=1)[0] for line in trusted_list().read_text().splitlines() if line.strip()}
    return set()


def trust(sha256: str, name: str) -> None:
    """Let the file with this digest run: in this process, and in those that this user starts on this machine."""
    if is_trusted(sha256):
        return
    trust_here(sha256)
    file = trusted_list()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(f"{sha256} {time.strftime('%Y-%m-%d')} {Path(name).name}\n")
    except OSError as error:
        log.warning("%s cannot be written (%s): other processes will not run %s", file, error.strerror, name)


def trust_here(sha256: str) -> None:
    """Let the file with this digest run in this process only."""
    _ALLOWED.add(sha256)


def require_trusted(sha256: str, name: str) -> None:
    """Check that a file may run.

    Raises:
        Refused: nobody allowed it on this machine.
    """
    if not is_trusted(sha256):
        raise Refused(
            "the Python file is not allowed to run on this machine yet",
            given=f"{Path(name).name}, SHA-256 {sha256[:16]}…",
            do="read it, then allow it with `smallalign runs trust RUN`, or on the page Distill of this machine",
        )


@contextlib.contextmanager
def forbidden() -> Iterator[None]:
    """Run no Python file in this context: the dashboard's own process is shared by all of its users."""
    token = _FORBIDDEN.set(True)
    try:
        yield
    finally:
        _FORBIDDEN.reset(token)


def _check_place(name: str) -> None:
    if _FORBIDDEN.get():
        raise Refused(
            "a user's Python does not run in the dashboard's own process",
            given=name,
            do="read the dataset again, on the page Data or with `smallalign inspect`",
        )


# --- importing --------------------------------------------------------------------------------------------------------


def function_of(file: Path, call: str, sha256: str | None = None) -> Callable[..., Any]:
    """The function or class called `call` in a Python file, which is imported once per process and content.

    Args:
        sha256: the digest that it must have.

    Raises:
        BadInput: the file cannot be read or imported, or has no such callable.
        Refused: it may not run.
        BadModel: its content is not that of the digest.
    """
    _check_place(file.name)
    if sha256 is None or sha256 not in _MODULES:
        content = read(file)[0] if sha256 is None else content_of(file, sha256)
        sha256 = hashlib.sha256(content).hexdigest()
        require_trusted(sha256, file.name)
        _imported(file, content, sha256)
    return _attribute(_MODULES[sha256], call, file)


def _imported(file: Path, content: bytes, sha256: str) -> None:
    if sha256 in _MODULES:
        return
    name, shown = f"smallalign_user_{sha256[:16]}", str(file)
    module = types.ModuleType(name)
    module.__file__ = shown
    _FILES[shown] = file.name
    text = content.decode("utf-8")
    linecache.cache[shown] = (len(text), None, text.splitlines(keepends=True), shown)
    sys.modules[name] = module  # dataclasses look themselves up
    try:
        with explained():
            exec(compile(text, shown, "exec"), module.__dict__)  # noqa: S102  # allowed above
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _MODULES[sha256] = module


def write_down(made: Callable[..., Any], folder: Path) -> Path:
    """Write the source of a class or function into a file that may run. Where that cannot be done, the file says so,
    and this process uses the object itself.

    Raises:
        BadInput: it is neither a class nor a function.
    """
    name = getattr(made, "__name__", "")
    if not isinstance(made, type | types.FunctionType):
        raise BadInput(
            "the network must be a class or a function that returns a module",
            given=f"an object of type {type(made).__name__}",
            do="give the class itself, not an instance; `with` in the spec has its arguments",
        )
    live = None
    try:
        text = recorded.source_of(made)
    except ValueError as error:
        log.warning("%s: its source is not recorded, so the run cannot be resumed or exported later: %s", name, error)
        text, name = (
            recorded.placeholder(name, str(error), os.urandom(8).hex()),
            name if name.isidentifier() else "given",
        )
        live = types.ModuleType(name)
        setattr(live, name, made)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    trust(sha256, f"{name}.py")
    if live is not None:
        _MODULES[sha256] = live
    file = folder / f"{name}.py"
    file.write_text(text, encoding="utf-8")
    return file


def _attribute(module: types.ModuleType, call: str, file: Path) -> Callable[..., Any]:
    found = getattr(module, call, None)
    if not callable(found):
        own = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
        callables = ", ".join(name for name in own if callable(getattr(module, name))) or "none"
        raise BadInput(
            f"the Python file has no function or class called {call}",
            given=f"{file}; it has: {callables}",
            do="set `call` to one of these names",
        )
    return found


def entry_of(group: str, name: str, package: str | None) -> tuple[Callable[..., Any], str]:
    """The callable of an entry point, and its package with version.

    Args:
        package: which it must be, as `name version`; any without.

    Raises:
        BadInput: no installed package has it, or another version is installed; its module cannot be imported.
    """
    _check_place(name)
    found = [one for one in importlib.metadata.entry_points(group=group) if one.name == name]
    if not found:
        known = ", ".join(sorted({one.name for one in importlib.metadata.entry_points(group=group)})) or "none"
        raise BadInput(
            f"no installed package has the entry point {name} in {group}",
            given=f"installed: {known}",
            do="install its package, or name another one",
        )
    dist = found[0].dist
    here = f"{dist.name} {dist.version}" if dist else "unknown"
    if package not in (None, here):
        raise BadInput(
            "another version of the entry point's package is installed",
            given=f"{here}; the run used {package}",
            do="install that version, or submit the spec again",
        )
    try:
        made = found[0].load()
    except Exception as error:  # noqa: BLE001  # whatever a package raises when it is imported
        raise BadInput(
            f"the entry point cannot be imported: {type(error).__name__}: {error}",
            given=f"{name} of {here}",
            do="repair the package",
        ) from None
    if not callable(made):
        raise BadInput("the entry point is not callable", given=f"{name} of {here}", do="name another one")
    return made, here


def called(function: Callable[..., Any], offered: Mapping[str, Any], given: Mapping[str, Any], shown: str) -> Any:
    """What a user's function returns for the arguments in `given`, and for those of `offered` that it has.

    Args:
        shown: what to call it in messages.

    Raises:
        BadInput: an argument is missing or unknown, or it raised an exception.
    """
    arguments = {**accepted(function, offered), **given}
    try:
        inspect.signature(function).bind(**arguments)
    except ValueError:  # no signature: written in C
        pass
    except TypeError as error:
        words = str(error)
        raise BadInput(
            f"the function cannot be called with these arguments: {words}",
            given=f"{shown}; {_place_of(function)}; given: {', '.join(arguments) or 'none'}",
            do="add a missing argument to `with`, or remove an unknown one",
        ) from None
    with explained():
        return function(**arguments)


def accepted(function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `offered` that a function has a parameter for; `**anything` is none."""
    try:
        named = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):
        return {}
    taken = {one.name for one in named if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    return {name: value for name, value in offered.items() if name in taken}


def _place_of(function: Callable[..., Any]) -> str:
    """File and line of a function or class, as far as they are known."""
    module = sys.modules.get(getattr(function, "__module__", "") or "")
    name = Path(getattr(module, "__file__", "") or "").name
    with contextlib.suppress(OSError, TypeError):
        return f"{name}, line {inspect.getsourcelines(function)[1]}"
    return name or "unknown file"


# --- errors -----------------------------------------------------------------------------------------------------------


def explanation(error: BaseException) -> BadInput | None:
    """An exception that passed through a user's file, with file and line; None for any other.

    An exporter's exception has the one of the file as its cause.
    """
    if isinstance(error.__cause__, Exception) and (cause := explanation(error.__cause__)) is not None:
        return cause
    if isinstance(error, SmallAlignError) or not isinstance(error, Exception):
        return None
    words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename in _FILES:
        return BadInput(
            f"the Python file has a syntax error: {error.msg}",
            given=f"{_FILES[error.filename]}, line {error.lineno}",
            do="correct the file",
        )
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename in _FILES]
    if not frames:
        return None
    last = frames[-1]
    inside = "" if last.name == "<module>" else f", in {last.name}"
    do = "correct the file"
    if isinstance(error, ImportError):
        do = "install the package, or put what it imports into the file: files beside it are not copied with a run"
    return BadInput(
        f"the Python file raised {' '.join(words.split())[:300]}",
        given=f"{_FILES[last.filename]}, line {last.lineno}{inside}: {(last.line or '').strip()[:80]}",
        do=do,
    )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Raise exceptions of a user's file as errors that name its line.

    Raises:
        BadInput: an exception passed through such a file.
    """
    try:
        yield
    except SystemExit as error:
        raise BadInput(
            "the Python file ended the program", given=f"exit code {error.code}", do="remove the call of exit"
        ) from None
    except Exception as error:
        if (known := explanation(error)) is None:
            raise
        raise known from None
