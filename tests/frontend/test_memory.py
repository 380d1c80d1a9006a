"""What stays in memory: counted by what it holds, bounded, only of requests that were right, per salt."""

import gc
import tracemalloc
from typing import Any

import pytest

from tests.byte_tokenizer import CHATML, byte_tokenizer
from tests.frontend.support import FrontEnd, schema
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.capacity import Capacity
from vllm_promptcache.frontend.composer import Composer, Turns
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.documents import LayoutBuilder, RequestDocument
from vllm_promptcache.frontend.errors import RefusedError
from vllm_promptcache.frontend.memory import MAX_REMEMBERED_BYTES, DocumentMemory
from vllm_promptcache.frontend.options import PromptOptions
from vllm_promptcache.frontend.registry import SchemaRegistry
from vllm_promptcache.frontend.sizes import layout_bytes
from vllm_promptcache.layout.encoder import TextEncoder

INCLUDED = "<pml>{}<prompt schema='s'>{}</prompt></pml>"


def modules(number: int, body: str, attributes: str = "", name: str = "m") -> str:
    return "".join(f"<module name='{name}{i}' {attributes}>{body}</module>" for i in range(number))


def document(inner: str, encode: str = "context", prompt: str = "") -> str:
    return INCLUDED.format(f"<schema name='s' encode='{encode}'>{inner}</schema>", prompt)


# Shapes of which a few bytes of text ask for much.
SHAPES = {
    "letters": document(modules(1000, "x")),
    "beside text": document("root" + modules(1000, "x")),
    "sequence": document(modules(150, "x"), "sequence"),
    "parameters": document(modules(500, "x<parameter name='p' length='4'/>")),
    "placeholders": document(modules(5, "x<parameter name='p' length='4000'/>")),
    "long": document(modules(4, "word " * 3000)),
    "nested": document("".join(f"<module name='{'n' * 100}{i}'>x" for i in range(60)) + "</module>" * 60),
    "unions": document("".join(f"<union>{modules(2, 'x', name=f'u{i}_')}</union>" for i in range(400))),
    "not cached": document(modules(1000, "x", "cache='false'")),
    "names": document(modules(400, "x", name="n" * 120)),
    "prompt": document(modules(1, "x"), prompt="<m0/>" + "<user>x</user>" * 3000),
    "text between": document("".join(f"<module name='m{i}'>x</module>y" for i in range(1000))),
}


class Held:
    """A front end of a model that is long enough for every shape."""

    def __init__(self) -> None:
        self.config = PromptCacheConfig()
        encoder = TextEncoder(byte_tokenizer(chat_template=CHATML))
        self.builder = LayoutBuilder(encoder, 100_000, self.config)
        registry = SchemaRegistry(FrontEnd().connection, self.builder, self.config.max_schemas, None)
        self.composer = Composer(registry, Capacity(16, 100_000))

    def compose(self, pml: str, text: str = "Go", **given: Any) -> Any:
        return run_sync(self.composer.compose_texts(pml, PromptOptions(), [text], **given))

    def use_all(self) -> None:
        """Have worked out of all that is remembered what requests over it have worked out sooner or later."""
        for _, document in self.remembered._documents.values():
            for entry in document.entries.values():
                for unit in entry.layout.units:
                    _ = unit.token_list, unit.digest, unit.home
                _ = entry.placements, entry._by_path, entry._by_id

    @property
    def remembered(self) -> DocumentMemory:
        return self.composer._memory


@pytest.fixture
def held() -> Held:
    front_end = Held()
    front_end.compose(document(modules(3, "x")))  # whatever is worked out once
    front_end.remembered.__init__()  # type: ignore[misc]
    return front_end


@pytest.mark.parametrize("shape", SHAPES)
def test_a_document_counts_by_what_it_holds(held: Held, shape: str) -> None:
    text = SHAPES[shape]
    gc.freeze()  # what is there already need not be looked through
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        held.compose(text)
        held.use_all()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    (counted,) = [num_bytes for num_bytes, _ in held.remembered._documents.values()]
    assert (after - before) <= counted <= 5 * (after - before), (after - before, counted)


def test_a_module_of_a_letter_holds_little(held: Held) -> None:
    """Each is some fifty characters of a document, and has arrays of its tokens and positions, and places."""
    number = 1000
    gc.freeze()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        document_held = held.builder.document_of(SHAPES["letters"], allow_schemas=True)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert len(document_held.entries["s"].layout.units) == number
    assert (after - before) / number <= 1950


def test_what_is_remembered_is_bounded_by_its_bytes(held: Held) -> None:
    for number in range(70):
        held.compose(SHAPES["beside text"].replace("root", f"root {number}"))
        assert held.remembered.num_bytes <= MAX_REMEMBERED_BYTES
    assert held.remembered.num_bytes > MAX_REMEMBERED_BYTES // 2
    counted = [num_bytes for num_bytes, _ in held.remembered._documents.values()]
    assert sum(counted) == held.remembered.num_bytes and len(counted) < 64


def test_the_documents_used_last_stay(held: Held) -> None:
    texts = [document(modules(2, f"text {number}")) for number in range(70)]
    for text in texts:
        held.compose(text)
        held.compose(texts[0])
    memory = held.remembered
    assert len(memory._documents) == 64
    assert memory.get(memory.key(texts[0], None)) is not None
    assert memory.get(memory.key(texts[1], None)) is None


@pytest.mark.parametrize(
    ("pml", "text"),
    [
        (document(modules(3, "x"), prompt="<m9/>"), "Go"),
        (document(modules(3, "x"), prompt="<m0/><m0/>"), "Go"),
        (document(modules(3, "x")), "x" * 200_000),
        (document(modules(3, "x")), "word " * 30_000),
    ],
)
def test_a_refused_request_leaves_nothing(held: Held, pml: str, text: str) -> None:
    for ask in (
        lambda: held.compose(pml, text),
        lambda: run_sync(
            held.composer.compose_chat(
                pml, PromptOptions(), Turns([{"role": "user", "content": text}, {"role": "none"}])
            )
        ),
    ):
        with pytest.raises((PMLError, RefusedError)):
            ask()
    assert held.remembered.num_bytes == 0 and not held.remembered._documents


def test_a_document_is_remembered_for_its_salt_alone(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = LayoutBuilder.document_of

    def document_of(self: LayoutBuilder, text: str, **given: Any) -> RequestDocument:
        read.append(text)
        return original(self, text, **given)

    monkeypatch.setattr(LayoutBuilder, "document_of", document_of)
    pml = document(modules(3, "x"))
    for salt in (None, "a", "b", "", "a", None, "b", ""):
        held.compose(pml, salt=salt)
    assert len(read) == 4


def test_registered_schemas_are_bounded_by_their_bytes() -> None:
    front_end = FrontEnd()
    front_end.register(schema("first", m="text"))
    registry = front_end.registry
    size = layout_bytes(registry["first"].layout)
    registry.max_bytes = 3 * size
    front_end.register(schema("other", m="text"))
    with pytest.raises(RefusedError, match="bytes of memory") as caught:
        front_end.register(f"<schema name='large'>{modules(20, 'text')}</schema>")
    assert caught.value.status == 507 and sorted(registry.entries) == ["first", "other"]
    run_sync(registry.remove("other"))
    front_end.register(schema("first", m="else"))  # a new version takes the place of the old one
