"""The demo's prompts fit its schemas, and what stops it before a server is started says so."""

import os
import signal
import socket
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from demo import story
from demo.__main__ import main
from demo.machine import HOST
from demo.packages import find_descriptions, write_schema
from vllm_promptcache.layout.build import build_layout
from vllm_promptcache.layout.schema import SchemaLayout
from vllm_promptcache.plan.build import build_plan
from vllm_promptcache.pml.parser import load_schema_file, parse_document


@pytest.fixture(scope="module")
def tokenizer(embedded_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_model)


def layout_of(path: Path, tokenizer: Any) -> SchemaLayout:
    (schema,) = load_schema_file(path).schemas
    return build_layout(schema, tokenizer, max_model_len=8192)


@pytest.mark.parametrize("scene", story.TRAVEL_SCENES, ids=("maldives", "alps"))
def test_the_travel_scenes_fit_their_schema(scene: story.Scene, tokenizer: Any) -> None:
    with resources.as_file(resources.files("demo") / "travel.pml") as path:
        layout = layout_of(path, tokenizer)
    prompt = parse_document(scene.pml).prompt
    assert prompt is not None
    plan = build_plan(layout, prompt)
    assert plan.num_cached_tokens > 250
    assert plan.num_new_tokens < 30


def test_the_packages_scene_fits_its_schema(tmp_path: Path, tokenizer: Any) -> None:
    packages = find_descriptions(story.NUM_PACKAGES)
    assert len(packages) == story.NUM_PACKAGES
    layout = layout_of(write_schema(tmp_path, packages), tokenizer)
    prompt = parse_document(story._packages_scene(packages).pml).prompt
    assert prompt is not None
    assert build_plan(layout, prompt).num_cached_tokens > 1000


def test_passages_come_again_at_other_places() -> None:
    passages = find_descriptions(story.NUM_PASSAGES, max_characters=story.PASSAGE_CHARACTERS)
    orders = story.passage_orders(len(passages))
    assert len(orders) == story.NUM_ORDERS
    assert all(len(set(order)) == story.NUM_MODULES for order in orders)
    places = {(passage, order.index(passage)) for order in orders for passage in order}
    again = [passage for passage in {p for p, _ in places} if len({i for p, i in places if p == passage}) > 1]
    assert len(again) >= 3


def test_a_taken_port_ends_the_demo_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    assert f"demo: port {port} cannot be used" in capsys.readouterr().err


def test_short_memory_ends_the_demo_before_a_server_is_started(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(story, "available_memory", lambda: 1 << 30)
    monkeypatch.setattr(story, "runs_on_cpu", lambda: True)
    assert main(["--model", str(tiny_model)]) == 2
    assert "not enough memory: serving" in capsys.readouterr().err


def test_a_missing_model_ends_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path / "none")]) == 2
    assert "cannot read the configuration of model" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_demo_quietly(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    monkeypatch.setattr(story, "run_demo", lambda _: os.kill(os.getpid(), number))
    assert main([]) == 130
    assert "interrupted" in capsys.readouterr().out
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_are_a_positive_number(rounds: str) -> None:
    with pytest.raises(SystemExit):
        main(["--rounds", rounds])
