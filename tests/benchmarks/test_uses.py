"""The paper's use cases: their files, and the requests that are made of them."""

from itertools import islice
from pathlib import Path
from uuid import uuid4

import pytest
from transformers import AutoTokenizer

from benchmarks.harness.text import TextSource, installed_descriptions
from benchmarks.speed import ttft
from benchmarks.speed.uses import NEW, USE_WAYS, USES, UseCase


@pytest.mark.parametrize("name", USES)
def test_all_ways_ask_the_same_prompt(name: str, embedded_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    use = UseCase.read(name, tokenizer, 8192)
    source = TextSource(installed_descriptions(), tokenizer)
    asks = {way: list(islice(use.asks(way, source, lambda: uuid4().hex), 2)) for way in USE_WAYS}
    assert len(use.module_tokens) >= 4
    assert sum(use.module_tokens) > 0.7 * len(use.token_ids)
    for way in ("full", "prefix"):
        assert all(tuple(ask.prompt[:-NEW]) == use.token_ids for ask in asks[way])
    for way in ("warm", "cold"):
        assert [ask.body["pml"] for ask in asks[way]] == [use.prompt] * 2
        assert len({ask.prompt for ask in asks[way]}) == 2  # new text of its own
    salts = {way: {ask.body.get("cache_salt") for ask in asks[way]} for way in USE_WAYS}
    assert {way: len(found) for way, found in salts.items() if found != {None}} == {"full": 2, "cold": 2}


def test_they_are_rows_beside_those_of_the_grid() -> None:
    samples = {way: [{"place": [0, 0], "ttft_ms": 9.0}] for way in USE_WAYS}
    cell = {"cached_tokens": 300, "samples": samples, "reused_tokens": {}, "encoded_modules": {}}
    result = {"cells": {"code": cell, "300:16:4": cell}, "text": {"source": "here", "tokens": 5}}
    assert [row[0] for row in ttft.tables(result)[1].rows] == ["code", "300:16:4"]
    assert ttft.figures(result)[-1].what.endswith("(300:16:4)")
    assert len(ttft.panels({"cells": {"code": cell}})) == 0
