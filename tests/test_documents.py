"""Examples in documents are what they say: PML that plans, refusals word by word, code that compiles."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.contract.plan import Plan
from vllm_promptcache.errors import PMLError
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.encoder import TextEncoder
from vllm_promptcache.layout.schema import SchemaLayout, find_layout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.nodes import Document
from vllm_promptcache.pml.parser import load_schema_file, parse_document
from vllm_promptcache.program import compile_program, prompt_for

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.pml"))
MAX_MODEL_LEN = 8192

_BLOCK = re.compile(r"(?:<!-- (?P<note>[\w ]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```\n", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block, the comment right before it, and the text of the block right after it."""

    language: str
    text: str
    note: str
    following: str


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found = list(_BLOCK.finditer(text))
    following = [_BLOCK.match(text, match.end()) for match in found]
    return [
        Block(match["language"], match["text"], match["note"] or "", after["text"] if after else "")
        for match, after in zip(found, following, strict=True)
    ]


class Reader:
    """Reads a document's examples from top to bottom; later schemas replace earlier ones of that name."""

    def __init__(self, encoder: TextEncoder, folder: Path) -> None:
        self._encoder = encoder
        self._folder = folder
        self._layouts: dict[str, SchemaLayout] = {}

    def read(self, block: Block) -> Iterator[Plan]:
        """The plan of the block's prompt, if it has one. Raises PMLError."""
        document = self._parse(block)
        for schema in document.schemas:
            self._layouts[schema.name] = build_layout(schema, self._encoder, MAX_MODEL_LEN)
        if document.prompt is not None:
            yield build_plan(find_layout(document.prompt, self._layouts), document.prompt)

    def _parse(self, block: Block) -> Document:
        if block.note != "from disk":
            return parse_document(block.text)
        for name in re.findall(r'src="([^"]+)"', block.text):
            (self._folder / name).write_text("Some text.")
        (self._folder / "example.pml").write_text(block.text)
        return load_schema_file(self._folder / "example.pml")


@pytest.fixture(scope="module")
def encoder(embedded_model: Path) -> TextEncoder:
    from transformers import AutoTokenizer

    return TextEncoder(AutoTokenizer.from_pretrained(embedded_model))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_pml_in_documents_plans_or_is_refused_as_it_says(
    path: Path, encoder: TextEncoder, tmp_path: Path
) -> None:
    reader = Reader(encoder, tmp_path)
    for block in blocks(path):
        if block.language != "xml":
            continue
        if block.note != "refused":
            assert all(plan.num_cached_tokens > 0 for plan in reader.read(block)), block.text
            continue
        with pytest.raises(PMLError) as error:
            list(reader.read(block))
        assert str(error.value) == block.following.strip()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_code_in_documents_compiles(path: Path) -> None:
    for block in blocks(path):
        if block.language == "python":
            compile(block.text, path.name, "exec")


def test_the_language_guide_has_all_kinds_of_examples() -> None:
    found = blocks(ROOT / "docs" / "pml.md")
    assert sum(block.language == "xml" for block in found) > 20
    assert sum(block.note == "refused" for block in found) >= 4


def test_the_prompt_program_of_the_guide_compiles(tmp_path: Path, encoder: TextEncoder) -> None:
    (source,) = [block.text for block in blocks(ROOT / "docs" / "pml.md") if "def guide(" in block.text]
    file = tmp_path / "guide.py"
    file.write_text(source)
    names: dict[str, Any] = {}
    exec(compile(source, str(file), "exec"), names)
    (schema,) = parse_document(compile_program(names["guide"])).schemas
    prompt = parse_document(prompt_for(names["guide"], age=71, city="rome")).prompt
    assert prompt is not None
    assert build_plan(build_layout(schema, encoder, MAX_MODEL_LEN), prompt).num_cached_tokens > 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_schemas_lay_out(path: Path, encoder: TextEncoder) -> None:
    for schema in load_schema_file(path).schemas:
        build_layout(schema, encoder, MAX_MODEL_LEN)


def test_the_readme_lists_all_settings_with_their_defaults() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", readme, re.MULTILINE)
    assert {name: json.loads(default) for name, default in table} == PromptCacheConfig().to_dict()


def test_the_list_of_decisions_is_complete() -> None:
    listed = re.findall(
        r"^\| \[\d{4}\]\(adr/([\w.-]+)\) \| ", (ROOT / "docs/README.md").read_text(), re.MULTILINE
    )
    assert listed == sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "log").glob("*.md")]
    missing = [p.name for p in pages if f"]({p.relative_to(ROOT / 'docs')})" not in index]
    assert missing == ["README.md"]


def test_documents_have_the_examples_that_this_file_looks_for() -> None:
    assert EXAMPLES
    assert any(block.language == "xml" for block in blocks(ROOT / "README.md"))
