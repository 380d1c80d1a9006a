"""Installed packages' descriptions as text, and the schema that is made of them."""

from pathlib import Path

import pytest

from demo.packages import Description, clean, cut, find_descriptions, write_schema
from vllm_promptcache.pml.nodes import ModuleNode, RoleNode, TextNode
from vllm_promptcache.pml.parser import load_schema_file


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("<p align='center'>\n<img src='x'>\n</p>\nText.", "Text."),
        ("[![Build](https://b/x.svg)](https://b)\nText.", "Text."),
        ("See [the docs](https://docs) and [more][1].\n\n[1]: https://more", "See the docs and more."),
        ("See `the docs <https://docs>`_ of :class:`Thing`.", "See the docs of Thing."),
        (".. image:: https://x.svg\n   :alt: badge\n\nName\n====\n\nText.", "Name\n\nText."),
        ("|Logo| |Build|\n\nText.", "Text."),
        ("Before.\n\n```python\nimport x\n```\n\nAfter.", "Before.\n\nAfter."),
        ("A\r\nB\r\n", "A\nB"),
        ("Fast 🚀 tool\x0c.", "Fast  tool."),
        ("x < 3 and y > 4", "x < 3 and y > 4"),
        ("a < b\n\n<!-- no\ncomment -->c", "a < b\n\nc"),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("text", "num_characters", "expected"),
    [
        ("short", 10, "short"),
        ("one two\n\nthree four\n\nfive", 20, "one two\n\nthree four"),
        ("one two three", 9, "one two"),
        ("unbreakable", 5, "unbre"),
        ("exactly", 7, "exactly"),
    ],
)
def test_cut_ends_at_a_paragraph_or_a_word(text: str, num_characters: int, expected: str) -> None:
    assert cut(text, num_characters) == expected


def test_descriptions_are_of_installed_packages_preferred_ones_first() -> None:
    found = find_descriptions(4, preferred=("numpy", "no-such-package-here", "lxml"), max_characters=900)
    assert len(found) == 4
    assert found[0].package == "numpy"
    assert len({each.package.lower() for each in found}) == 4
    assert all(600 <= len(each.text) <= 900 for each in found)


@pytest.mark.parametrize(
    ("package", "module"), [("ruamel.yaml", "ruamel.yaml"), ("3to2", "_3to2"), ("a b", "a_b"), ("é", "_")]
)
def test_module_names_are_names(package: str, module: str) -> None:
    assert Description(package, "text").module.startswith(module)


def test_the_schema_holds_the_texts_as_they_are(tmp_path: Path) -> None:
    texts = {"one": "Less < more & more.\n\nSecond paragraph.", "two.b": "]]> é"}
    path = write_schema(tmp_path, [Description(name, text) for name, text in texts.items()])
    (schema,) = load_schema_file(path).schemas
    _, role = schema.children
    assert isinstance(role, RoleNode)
    modules = [child for child in role.children if isinstance(child, ModuleNode)]
    assert [module.name for module in modules] == ["one", "two.b"]
    for module in modules:
        (text,) = module.children
        assert isinstance(text, TextNode)
        assert text.text == f"\n\n# {module.name}\n\n{texts[module.name]}\n"
