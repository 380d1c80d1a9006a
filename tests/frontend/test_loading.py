"""The operator's schemas, from files to pinned modules."""

import logging
from pathlib import Path

import pytest

from tests.frontend.support import FrontEnd, StoreConnection, schema
from vllm_promptcache.config import PromptCacheConfig
from vllm_promptcache.errors import PMLError
from vllm_promptcache.frontend.connection import run_sync
from vllm_promptcache.frontend.documents import load_schema_files
from vllm_promptcache.frontend.loading import load_and_pin
from vllm_promptcache.pml.limits import Limits


def test_files_and_folders_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.pml", "a.xml", "notes.txt"):
        (tmp_path / name).write_text(schema(name[0]))
    single = tmp_path / "single"
    single.write_text(f"<pml>{schema('y')}{schema('x')}</pml>")
    found = load_schema_files([str(single), str(tmp_path)], PromptCacheConfig())
    assert [(Path(path).name, node.name) for path, node in found] == [
        ("single", "y"),
        ("single", "x"),
        ("a.xml", "a"),
        ("b.pml", "b"),
    ]


def test_a_folder_may_hold_prompts_as_well() -> None:
    """So a folder that `check` takes can be served: the examples, for one."""
    examples = Path(__file__).parents[2] / "examples"
    assert list(examples.glob("prompt.pml"))
    found = load_schema_files([str(examples)], PromptCacheConfig())
    assert sorted(node.name for _, node in found) == ["code", "plan", "traits", "travel"]


def test_all_mistakes_of_all_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "1.pml").write_text(schema("a"))
    (tmp_path / "2.pml").write_text("<schema><module/></schema>")
    (tmp_path / "3.pml").write_text(schema("a"))
    (tmp_path / "4.pml").write_text("<prompt schema='a'/>")
    (tmp_path / "5.pml").write_text("<pml/>")
    with pytest.raises(PMLError) as caught:
        load_schema_files(
            [str(tmp_path), *(str(tmp_path / name) for name in ("4.pml", "none.pml"))], PromptCacheConfig()
        )
    wheres = [(Path(issue.where).name, issue.line) for issue in caught.value.issues]
    names = ("2.pml", "2.pml", "3.pml", "4.pml", "4.pml", "5.pml", "none.pml")  # 4 in the folder, and named
    assert sorted(wheres) == [(name, 1) for name in names]
    assert "another schema 'a'" in str(caught.value)


def test_schemas_are_encoded_and_pinned_and_one_too_large_is_served_unpinned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "1.pml").write_text(schema("small", m="m" * 64))
    (tmp_path / "2.pml").write_text(schema("large", m="m" * 640))
    front_end = FrontEnd(StoreConnection(pin_limit=20))
    logger = logging.getLogger("vllm.promptcache")
    logger.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "vllm.promptcache"):
        run_sync(load_and_pin(front_end.registry, load_schema_files([str(tmp_path)], front_end.config)))
    logger.removeHandler(caplog.handler)
    assert front_end.residencies("small") == ["resident"] * 2
    assert front_end.residencies("large") == ["absent"] * 2
    # As sets: whether vLLM's logger also passes records on to its parents depends on the environment.
    (warning,) = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
    assert "'large' is served unpinned" in warning
    assert any("1 modules, 69 tokens, 69 positions" in record.getMessage() for record in caplog.records)
    assert front_end.registry["small"].source == str(tmp_path / "1.pml")


def test_mistakes_that_only_the_model_shows_refuse_all(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.pml").write_text(schema(name, m="m" * 5000))
    front_end = FrontEnd()
    with pytest.raises(PMLError) as caught:
        run_sync(load_and_pin(front_end.registry, load_schema_files([str(tmp_path)], front_end.config)))
    assert len(caught.value.issues) == 2 and not front_end.registry.entries


def test_placeholders_of_all_schemas_of_a_document_are_limited_together(tmp_path: Path) -> None:
    module = '<module name="m">m<parameter name="p" length="100"/></module>'
    schemas = [f'<schema name="s{number}">{module}</schema>' for number in range(3)]
    front_end = FrontEnd()
    builder = front_end.registry.builder
    builder.limits = Limits(max_placeholders=299)
    document = f"<pml>{''.join(schemas)}</pml>"
    what = r"schema\[s2\]: the document's schemas have more than 299 placeholders"
    with pytest.raises(PMLError, match=what):
        builder.schemas_of(document, "pml")
    with pytest.raises(PMLError, match=what):
        builder.document_of(document.replace("</pml>", "<prompt schema='s0'/></pml>"))
    # An operator's files are many documents.
    for number, text in enumerate(schemas):
        (tmp_path / f"{number}.pml").write_text(text)
    run_sync(load_and_pin(front_end.registry, load_schema_files([str(tmp_path)], front_end.config)))
    assert len(front_end.registry.entries) == 3
