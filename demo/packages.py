"""Real text for the demo's second schema: the descriptions that installed packages carry."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

# Packages that come with vLLM and whose descriptions begin with prose, the best first.
WELL_KNOWN = ("networkx", "numpy", "cloudpickle", "fastapi", "jinja2", "psutil", "requests", "starlette")

SCHEMA_NAME = "packages"
INSTRUCTION = "Descriptions of Python packages."
# About 600 tokens of English.
MAX_CHARACTERS = 2400
# Shorter descriptions are a line and a link.
MIN_CHARACTERS = 600


@dataclass(frozen=True)
class Description:
    """A package's description, cleaned and cut, and the name of its module in the schema."""

    package: str
    text: str

    @property
    def module(self) -> str:
        """The package's name as PML allows it."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", self.package)
        return name if name[:1].isalpha() else f"_{name}"


def find_descriptions(
    count: int, preferred: Iterable[str] = WELL_KNOWN, max_characters: int = MAX_CHARACTERS
) -> list[Description]:
    """Descriptions of up to `count` installed packages, `preferred` ones first, then by name."""
    found: list[Description] = []
    for package, raw in _installed(preferred):
        text = cut(clean(raw), max_characters)
        if len(text) >= min(MIN_CHARACTERS, max_characters):
            found.append(Description(package, text))
        if len(found) == count:
            break
    return found


def _installed(preferred: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(name, description as it is) of installed packages, each once."""
    seen: set[str] = set()
    for name in preferred:
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(name.lower())
        yield name, _description(distribution)
    named = ((each.metadata["Name"] or "", each) for each in importlib.metadata.distributions())
    for name, distribution in sorted(named, key=lambda pair: pair[0].lower()):
        if name and name.lower() not in seen:
            seen.add(name.lower())
            yield name, _description(distribution)


def _description(distribution: importlib.metadata.Distribution) -> str:
    metadata = distribution.metadata
    text = metadata.get_payload() or metadata["Description"] or ""  # type: ignore[attr-defined]
    return text if isinstance(text, str) else ""


# What is no prose, removed in this order.
_REMOVED = tuple(
    re.compile(pattern, re.MULTILINE | re.DOTALL)
    for pattern in (
        r"<!--.*?-->",
        r"^ *(`{3,})[^`]*?^ *\1[ ]*$",  # fenced code
        r"<[a-zA-Z/][^<>]{0,4000}>",  # HTML tags
        r"!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])",  # images
        r"^ *\.\.\s+\S[^\n]*$(?:\n[ \t]+:[^\n]*$)*",  # reStructuredText directives and link targets
        r"^ *\[[^\]\n]*\]:\s+\S+[^\n]*$",  # Markdown link targets
        r"^ *(?:\|[^|\n]+\| *)+$",  # substitutions, mostly badges
        r"\[\s*\]\([^)]*\)",  # links around an image
        r"^ *(?:[-=~^\"*#+_.:`|] ?){3,}$",  # underlines and rulers
        r"^ *https?://\S+$",
        "[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd]",  # what XML does not allow, and pictographs
    )
)
# Links become their text.
_LINKS = (
    (re.compile(r"\[([^\[\]\n]*)\](?:\([^)\s]*\)|\[[^\]\n]*\])"), r"\1"),
    (re.compile(r"`([^`<\n]+?)\s*<[^>\n]+>`__?"), r"\1"),
    (re.compile(r":\w+:`([^`\n]+)`"), r"\1"),
)


def clean(description: str) -> str:
    """A description as prose: without HTML, badges, code blocks, rulers and the addresses of links."""
    text = description.replace("\r\n", "\n").expandtabs(4)
    for pattern, replacement in _LINKS[1:]:
        text = pattern.sub(replacement, text)
    for pattern in _REMOVED:
        text = pattern.sub("", text)
    text = _LINKS[0][0].sub(_LINKS[0][1], text)
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def cut(text: str, max_characters: int) -> str:
    """The first paragraphs of `text` that fit; where not even one does, its first words."""
    if len(text) <= max_characters:
        return text
    head = text[: max_characters + 1]
    for end in ("\n\n", "\n", " "):
        if end in head:
            return head[: head.rindex(end)].rstrip()
    return head[:max_characters]


def write_schema(folder: Path, descriptions: Iterable[Description]) -> Path:
    """Writes `packages.pml` and a text file for each module into `folder`; returns the schema's path.

    The modules stand in the user's message, where the question follows them.
    """
    modules = ""
    for each in descriptions:
        file = folder / f"{each.module}.txt"
        file.write_text(f"\n\n# {each.package}\n\n{each.text}\n", encoding="utf-8")
        name, src = quoteattr(each.module), quoteattr(file.name)
        modules += f'    <module name={name} src={src} space="preserve"/>\n'
    path = folder / f"{SCHEMA_NAME}.pml"
    path.write_text(
        f'<schema name={quoteattr(SCHEMA_NAME)} space="compact">\n'
        f"  <system>{INSTRUCTION}</system>\n  <user>\n{modules}  </user>\n</schema>\n",
        encoding="utf-8",
    )
    return path
