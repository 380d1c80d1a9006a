"""Prompts from files."""

import json
from pathlib import Path

import pytest

from vllm_promptcache.advise.questions import read_questions
from vllm_promptcache.errors import PMLError

PROMPT = '<prompt schema="s"><m/>Go.</prompt>'


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "one.pml").write_text(PROMPT)
    (tmp_path / "both.xml").write_text(
        f'<pml><schema name="s">S<module name="m">M</module></schema>{PROMPT}</pml>'
    )
    said = [{"role": "user", "content": "Hi"}]
    lines = [
        {"pml": PROMPT, "messages": said, "model": "m"},
        {"pml": PROMPT, "prompt": "And"},
        {"pml": PROMPT},
    ]
    (tmp_path / "log.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    questions = read_questions([tmp_path])
    assert [Path(q.where).name for q in questions] == [
        "both.xml",
        "log.jsonl:1",
        "log.jsonl:3",
        "log.jsonl:5",
        "one.pml",
    ]
    assert [(q.messages, q.prompt) for q in questions] == [
        (None, ""),
        (said, ""),
        (None, "And"),
        *[(None, "")] * 2,
    ]
    assert [list(q.schemas) for q in questions] == [["s"], [], [], [], []]
    assert {q.node.schema for q in questions} == {"s"}
    assert [q.where for q in read_questions([tmp_path / "one.pml"])] == [str(tmp_path / "one.pml")]


def test_all_mistakes_are_told(tmp_path: Path) -> None:
    lines = ["{", "[]", '{"pml": 1}', '{"pml": "<prompt"}', '{"pml": "<schema name=\'s\'>x</schema>"}']
    lines += [json.dumps({"pml": PROMPT, "messages": "Hi"}), json.dumps({"pml": PROMPT, "prompt": [1]})]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    (tmp_path / "schema.pml").write_text('<schema name="s">x</schema>')
    with pytest.raises(PMLError) as caught:
        read_questions([tmp_path])
    told = "\n".join(str(issue) for issue in caught.value.issues)
    for what in (
        *(
            "log.jsonl:1:1:1: prompts: not JSON",
            "log.jsonl:2:1:1: prompts: a line is an object",
            "log.jsonl:3:1:1",
        ),
        *("log.jsonl:4:1:", "log.jsonl:5:1:1: prompts: there is no prompt", "'messages' must be a list"),
        *("'prompt' must be a string", "schema.pml:1:1: prompts: there is no prompt in the document"),
    ):
        assert what in told, what
    with pytest.raises(PMLError, match="cannot be read"):
        read_questions([tmp_path / "nothing.jsonl"])
