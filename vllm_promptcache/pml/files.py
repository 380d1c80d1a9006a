"""Documents and texts on disk: schema files and the files that `src` names."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from vllm_promptcache.errors import TOO_LARGE, PMLError
from vllm_promptcache.pml.limits import Limits
from vllm_promptcache.pml.reader import Characters
from vllm_promptcache.pml.source import Place, Source

JSON_SUFFIX = ".json"
SCHEMA_SUFFIXES = (".pml", ".xml", JSON_SUFFIX)


def find_schema_files(path: Path) -> list[Path]:
    """The file itself, or the `*.pml`, `*.xml`, `*.json` files in a folder and its folders, sorted by path.

    Folders whose names begin with a dot are left out, and links to folders are not followed.
    """
    # os.path's questions, unlike Path's, are answered for names that are too long as well.
    if not os.path.isdir(path):
        return [path]
    found: list[Path] = []
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith(SCHEMA_SUFFIXES)]
    return sorted(file for file in found if file.is_file())


def read_source(path: Path, limits: Limits) -> Source:
    """A document's bytes. Raises PMLError: 413 where it is too large, else 400 where it can't be read."""
    unread = Source(str(path), b"")
    try:
        with path.open("rb") as file:
            data = file.read(limits.max_document_bytes + 1)
    except OSError as error:
        raise PMLError([unread.issue(f"cannot be read: {error.strerror}")]) from None
    if len(data) > limits.max_document_bytes:
        what = f"is larger than the {limits.max_document_bytes} bytes that are allowed"
        raise PMLError([unread.issue(what)], TOO_LARGE)
    return Source(str(path), data)


def read_text_file(folder: Path, src: str, place: Place, limits: Limits) -> Characters:
    """The text of the file that a module's `src` names, as one text run.

    `folder` is the schema file's; the path must stay inside it, also after following links. Lines end
    in a line feed, as in XML. Raises PMLError, pointing at `place`.
    """
    path = _inside(folder, src)
    if path is None:
        raise PMLError([place.issue(f"{src!r} is not a path inside the folder of the schema's file")])
    if not os.path.isfile(path):
        raise PMLError([place.issue(f"there is no file {src!r}")])
    try:
        source = read_source(path, limits)
        text = source.data.decode("utf-8-sig")
    except PMLError as error:
        raise PMLError([place.issue(f"{src!r} {issue.what}") for issue in error.issues]) from None
    except UnicodeDecodeError:
        raise PMLError([place.issue(f"{src!r} is not UTF-8")]) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Characters(Place(replace(source, label=src), 0, None, ""), [(text, False)])


def _inside(folder: Path, src: str) -> Path | None:
    """The file `src` names in `folder`, or None where the path, or a link on it, leads out of it."""
    if not src or "\0" in src or Path(src).is_absolute():
        return None
    root = folder.resolve()
    try:
        path = (root / src).resolve()
    except (OSError, RuntimeError):
        return None
    return path if path.is_relative_to(root) else None
