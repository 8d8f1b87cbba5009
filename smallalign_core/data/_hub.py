"""Datasets as Hugging Face keeps them: `hf://owner/name[@revision][/config]`, and folders of Parquet files with images.

A host is contacted only for a source that begins with `hf://`, and only until its images are decoded: HF_ENDPOINT, else
huggingface.co. HF_HUB_OFFLINE and a host that does not answer leave the copy in the cache of `huggingface_hub`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smallalign_core.data._files import IMAGE_ENDINGS, Listing
from smallalign_core.data._layout import role
from smallalign_core.data._parquet import ENDINGS
from smallalign_core.data._table_formats import FORMATS
from smallalign_core.errors import BadData, Refused
from smallalign_core.spec import value_of
from smallalign_core.system import extras, limits

PREFIX = "hf://"
WHAT = "a dataset of the Hugging Face hub"

NAME = re.compile(
    r"hf://(?:datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/[\w-]+/[\w.-]+|[\w.-]+))?"
    r"(?:/(?P<config>[\w. -]+))?/?"
)

MOST_BYTES = 20 * 1024**3
"""Of one download."""

MOST_README = 2 * 1024**2

BESIDE = ("README.md", *(f"*{ending}" for ending in FORMATS if ending not in ENDINGS), "classes.txt", "labels.txt")


@dataclass(frozen=True)
class Source:
    """What an address names; `revision` is a branch, a tag or a commit."""

    repo: str
    revision: str | None = None
    config: str | None = None


def is_address(source: str) -> bool:
    """Whether a source is an address of the hub."""
    return source.startswith(PREFIX)


def parsed(source: str) -> Source:
    """The parts of an address.

    Raises:
        BadData: it is none.
    """
    found = NAME.fullmatch(source)
    if found is None or ".." in source:
        raise BadData(
            "the address of a Hugging Face dataset cannot be read",
            given=source,
            do="write hf://owner/name, hf://owner/name@revision or hf://owner/name@revision/config",
        )
    return Source(**found.groupdict())


def fetched(source: str) -> tuple[Path, str]:
    """(the folder of a dataset in the hub's cache, its commit); downloaded now if it is not there.

    Raises:
        BadData: there is no such dataset or revision, or it cannot be reached and is not in the cache.
        Refused: users of a dashboard with restricted folders asked for it; it is too large.
        MissingExtra: huggingface_hub is not installed.
    """
    named = parsed(source)
    if limits.confined():
        raise Refused(
            "a dataset of the Hugging Face hub is downloaded for the owner of this machine only",
            given=source,
            do=f"have it read once on the command line: smallalign inspect {source}",
        )
    hub, errors = (extras.load(name, WHAT) for name in ("huggingface_hub", "huggingface_hub.errors"))
    offline = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    try:
        files = _wanted(hub, named, source)
    except errors.GatedRepoError:
        do = "accept its conditions on its page, and log in with `hf auth login`"
        raise BadData("access to the dataset must be granted first", given=source, do=do) from None
    except errors.RevisionNotFoundError:
        raise BadData("the dataset has no such revision", given=source, do="name a branch, tag or commit") from None
    except errors.RepositoryNotFoundError:
        do = "check owner and name; a private one needs `hf auth login`"
        raise BadData("there is no such dataset on the hub", given=source, do=do) from None
    except Exception as error:  # the clients of different versions of the hub raise errors of their own
        if not isinstance(error, (*offline, OSError)) and not _of_client(error):
            raise
        files = None
    given: dict[str, Any] = {"repo_type": "dataset", "revision": named.revision, "local_files_only": files is None}
    try:
        with contextlib.redirect_stderr(io.StringIO()), _no_bars(hub):
            place = Path(hub.snapshot_download(named.repo, **given, allow_patterns=files or _likely(named)))
    except Exception as error:
        if not isinstance(error, (*offline, OSError, ValueError)) and not _of_client(error):
            raise
        host = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        part = "it is not in the cache, or only in part" if files is None else "the download broke off"
        raise BadData(
            f"the dataset cannot be fetched: {part} ({type(error).__name__})",
            given=f"{source} at {host}",
            do="connect to the internet and try again, or give the path of a local copy",
        ) from None
    return place, place.name


def _of_client(error: Exception) -> bool:
    """Whether an error is one of the hub's HTTP client: nobody answers, or not in time."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests")


def _likely(named: Source) -> list[str]:
    """What `_wanted` names, as patterns for a cache whose host cannot be asked."""
    images = [f"*{ending}" for ending in sorted(IMAGE_ENDINGS)]
    if named.config is None:
        return ["*.parquet", *images]
    return [f"{named.config}/*.parquet", f"*/{named.config}/*.parquet", *images]


@contextlib.contextmanager
def _no_bars(hub: Any) -> Any:
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.enable_progress_bars()


def _wanted(hub: Any, named: Source, source: str) -> list[str]:
    """The files to download: Parquet of the configuration, else images; and what tells about them.

    Raises:
        BadData: there are neither.
        Refused: they are too large, or the disk has no room.
    """
    info = hub.HfApi().dataset_info(named.repo, revision=named.revision, files_metadata=True)
    sizes = {one.rfilename: one.size or 0 for one in info.siblings or ()}
    parquet = [name for name in sizes if name.endswith(".parquet")]
    of_config = [name for name in parquet if named.config in (None, *name.split("/")[:-1])]
    chosen = of_config or parquet  # a configuration may be named in the README alone
    chosen = chosen or [name for name in sizes if Path(name).suffix.lower() in IMAGE_ENDINGS]
    if not chosen:
        kinds = ", ".join(sorted({Path(name).suffix or name for name in sizes})[:12])
        raise BadData(
            "the dataset has neither Parquet files nor images",
            given=f"{source} has {kinds}",
            do=f"try {PREFIX}{named.repo}@refs/convert/parquet, or download and unpack it",
        )
    total = sum(sizes[name] for name in chosen)
    free = shutil.disk_usage(Path.home()).free
    if total > min(MOST_BYTES, free // 2):
        raise Refused(
            "the dataset is too large to download",
            given=f"{total / 1024**3:,.1f} GB; {free / 1024**3:,.1f} GB are free",
            do="name a configuration (hf://owner/name/config), or give the path of a local copy",
        )
    beside = [name for name in sizes if any(fnmatch.fnmatch(Path(name).name, one) for one in BESIDE)]
    return [re.sub(r"([*?\[])", r"[\1]", name) for name in (*chosen, *beside)]


# --- what the README says ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """What the YAML of a README tells: patterns of files by split for each configuration, and class names by column."""

    configs: dict[str, list[tuple[str, str]]]
    default: str | None
    classes: dict[str, dict[str, tuple[str, ...]]]


def card(folder: Path) -> Card:
    """The README of a folder; empty where there is none, or none that is understood."""
    held: Any = {}
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        file = folder / "README.md"
        if file.is_file() and file.stat().st_size <= MOST_README:
            text = file.read_text(encoding="utf-8-sig")
            front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
            held = value_of(front[1]) if front else {}
    configs: dict[str, list[tuple[str, str]]] = {}
    default = None
    for one in _dicts(held, "configs"):
        name = str(one.get("config_name", "default"))
        configs[name] = _patterns(one.get("data_files"))
        default = name if one.get("default") is True or (default is None and name == "default") else default
    classes = {}
    for one in _dicts(held, "dataset_info"):
        named = {str(feature.get("name")): _class_names(feature.get("dtype")) for feature in _dicts(one, "features")}
        classes[str(one.get("config_name", "default"))] = {name: found for name, found in named.items() if found}
    return Card({name: found for name, found in configs.items() if found}, default, classes)


def _dicts(held: Any, key: str) -> list[Mapping[str, Any]]:
    """The mappings at `key`: one, or a list."""
    found = held.get(key) if isinstance(held, Mapping) else None
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, Mapping)]


def _patterns(files: Any) -> list[tuple[str, str]]:
    """(split, pattern) of `data_files` as a README writes them."""
    if isinstance(files, str):
        return [("train", files)]
    if isinstance(files, Mapping):
        files = [{"split": split, "path": path} for split, path in files.items()]
    found = []
    for one in files if isinstance(files, list) else ():
        if isinstance(one, str):
            found.append(("train", one))
        elif isinstance(one, Mapping):
            paths = one.get("path")
            found += [
                (str(one.get("split", "train")), str(path)) for path in (paths if isinstance(paths, list) else [paths])
            ]
    return found


def _class_names(kind: Any) -> tuple[str, ...]:
    names = kind.get("class_label", {}) if isinstance(kind, Mapping) else None
    names = names.get("names") if isinstance(names, Mapping) else None
    if isinstance(names, Mapping) and all(str(key).isdecimal() for key in names):
        return tuple(str(names[key]) for key in sorted(names, key=lambda key: int(key)))
    return tuple(map(str, names)) if isinstance(names, list) else ()


def files_of(listing: Listing, card: Card, config: str | None, source: str) -> tuple[str | None, dict[str, str | None]]:
    """(the configuration, the split of each of its files by name; None where the README does not say it).

    Raises:
        BadData: there is no such configuration, or there are several and none is named.
    """
    names = [entry.name for entry in listing.tables if entry.ending in ENDINGS]
    folders = sorted({name.split("/")[0] for name in names if "/" in name} - {"data"})
    known = list(card.configs) or [one for one in folders if role(one) is None]
    chosen = config or card.default or (known[0] if len(known) == 1 else None)
    if (config is not None and config not in known) or (chosen is None and len(known) > 1):
        raise BadData(
            "the dataset has no such configuration" if config else "the dataset has several configurations",
            given=f"{source} has {_some(known)}",
            do=f"name one of them: {source.rpartition('/')[0] if config else source.rstrip('/')}/{_first(known)}",
        )
    if chosen in card.configs:
        found: dict[str, str | None] = {
            name: split
            for split, pattern in card.configs[str(chosen)]
            for name in names
            if fnmatch.fnmatch(name, pattern.removeprefix("./"))
        }
        if found:
            return chosen, found
    of_folder = [name for name in names if chosen is not None and chosen in name.split("/")[:-1]]
    return chosen, dict.fromkeys(of_folder or names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) or "none"


def _first(names: Sequence[str]) -> str:
    return names[0] if names else "NAME"
