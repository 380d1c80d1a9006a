"""The command line, called in this process."""

# ruff: noqa: E501 (messages are read in lines)

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vllm_promptcache import __version__
from vllm_promptcache.cli.main import main

SCHEMA = """<schema name="travel">You are a guide.
  <module name="plan">The trip takes <parameter name="days" length="4"/> days.
    <union name="where"><module name="alps">The Alps have snow.</module><module name="sea">{}</module></union>
  </module></schema>
"""
PROMPT = '<prompt schema="travel"><plan days="three"><alps/></plan> Where to go?</prompt>\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a schema of a few gaps and a prompt over it; also the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("travel.pml").write_text(SCHEMA.format("Water, " * 20))
    Path("ask.xml").write_text(PROMPT)
    return tmp_path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_check_says_what_it_has_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "travel.pml", "ask.xml") == 0
    assert capsys.readouterr() == ("travel.pml: schema travel, 3 modules\nask.xml: prompt over travel\n", "")
    assert run("check", folder) == 0
    assert run("check", "ask.xml") == 0
    assert capsys.readouterr().out.endswith("ask.xml: prompt over travel (not checked against it)\n")


def test_check_names_a_place_for_tools(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("agent.pml").write_text(
        '<schema name="agent"><system>You act.<tools length="50"/></system></schema>'
    )
    assert run("check", "agent.pml") == 0
    assert capsys.readouterr().out == "agent.pml: schema agent, 0 modules, a place for tools\n"
    assert run("check", "--model", embedded_model, "agent.pml") == 0
    assert capsys.readouterr().out.splitlines() == [
        "agent.pml: schema agent, 0 modules, a place for tools, 58 positions",
        "agent.pml: note: schema agent: it has a place for tools, and the model's chat template writes none",
    ]


def test_schemas_in_json_are_checked_and_explained(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = {"name": "files", "modules": [{"name": "a.pdf", "text": "\f1 Report\r\nEleven boats."}]}
    Path("files.json").write_text(json.dumps(form))
    Path("asked.pml").write_text('<prompt schema="files"><a.pdf/> How many?</prompt>')
    assert run("check", folder) == 0
    assert "files.json: schema files, 1 module\n" in capsys.readouterr().out
    given = ("--schema", "files.json", "--prompt", "asked.pml", "--json")
    assert run("explain", "--model", embedded_model, *given) == 0
    assert json.loads(capsys.readouterr().out)["units"][0]["id"] == "files/a.pdf"
    Path("files.json").write_text('{"name": "files",\n  "modules": [{"nam": "a"}]}')
    Path("broken.json").write_text('{"name":\n "é" x}')
    assert run("check", "files.json", "broken.json") == 1
    said = capsys.readouterr().err
    assert "files.json:1:1: /: modules.0.name: Field required" in said
    assert "broken.json:2:6: /: not JSON: Expecting ',' delimiter" in said


def test_check_reports_every_mistake_of_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "ask.xml").write_text(PROMPT.replace("alps", "apls").replace("days", "day"))
    (folder / "broken.pml").write_text("<schema name='s'>")
    (folder / "many.pml").write_text("<pml><schema name='a/b'/><schema nam='b'/></pml>")
    (folder / "twin.pml").write_text("<schema name='travel'/>")
    (folder / "other.xml").write_text("<prompt schema='travle'/>")
    assert (
        run("check", "travel.pml", "ask.xml", "broken.pml", "many.pml", "twin.pml", "other.xml", "none.pml")
        == 1
    )
    out, err = capsys.readouterr()
    assert out == "travel.pml: schema travel, 3 modules\n"
    assert err.splitlines() == [
        "broken.pml:1:18: schema[s]: not well-formed XML: no element found",
        "many.pml:1:14: pml/schema[a/b]/@name: the name 'a/b' of a schema has a '/'",
        "many.pml:1:34: pml/schema/@nam: unknown attribute 'nam'; did you mean 'name'?",
        "twin.pml:1:9: schema[travel]/@name: another document has a schema 'travel'",
        "none.pml:1:1: /: cannot be read: No such file or directory",
        "ask.xml:1:31: prompt/plan/@day: unknown parameter 'day'; did you mean 'days'?",
        "ask.xml:1:43: prompt/plan/apls: unknown module 'apls'; did you mean 'alps'?",
        "other.xml:1:9: prompt/@schema: unknown schema 'travle'; did you mean 'travel'?",
    ]


def test_a_prompt_is_not_wrong_for_the_mistakes_of_its_schema(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "travel.pml").write_text(SCHEMA.format("").replace("You are", "You & I are"))
    (folder / "other.pml").write_text("<schema name='other'/>")
    assert run("check", folder) == 1
    out, err = capsys.readouterr()
    assert err == (
        f"{folder}/travel.pml:1:27: schema[travel]: not well-formed XML: '&' as text is written &amp;, or stands in"
        " CDATA\n"
    )
    assert f"{folder}/ask.xml: prompt over travel (not checked against it)" in out


def test_check_without_a_model_minds_no_lengths(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = PROMPT.replace("three", "a lot of words that cannot fit").replace("<alps/>", "and more<alps/>")
    (folder / "ask.xml").write_text(long)
    (folder / "roles.pml").write_text("<schema name='r'><system>x</system></schema>")
    assert run("check", folder) == 0
    assert capsys.readouterr().err == ""


def test_check_without_a_model_takes_placeholders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "travel.pml").write_text(
        SCHEMA.format("").replace('length="4"', 'length="4" placeholder="unk"')
    )
    assert run("check", "travel.pml", "ask.xml") == 0
    assert capsys.readouterr().err == ""


def test_names_that_are_too_long_for_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "x" * 300
    (folder / "long.pml").write_text(f'<schema name="s"><module name="m" src="{name}"/></schema>')
    assert run("check", "long.pml", name) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"long.pml:1:35: schema[s]/module[m]/@src: there is no file '{name}'"
    assert err[1] == f"{name}:1:1: /: cannot be read: File name too long"


def test_check_with_a_model_measures(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("travel.pml", "ask.xml")
    assert run("check", "--model", embedded_model, *files) == 0
    assert capsys.readouterr().out.startswith("travel.pml: schema travel, 3 modules, 58 positions\n")
    (folder / "ask.xml").write_text(PROMPT.replace("three", "a lot of words that cannot fit"))
    assert run("check", "--model", embedded_model, "--max-model-len", 70, *files) == 1
    assert capsys.readouterr().err == (
        "travel.pml:1:1: schema[travel]: the schema takes 58 positions; with 16 to be left free that is more"
        " than the model's 70\n"
    )
    assert run("check", "--model", embedded_model, *files) == 1
    assert capsys.readouterr().err == (
        "ask.xml:1:31: prompt/plan/@days: the argument for parameter 'days' has 7 tokens; 4 fit\n"
    )


def test_explain_prints_the_page_s_json(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--schema", "travel.pml", "--prompt", "ask.xml")
    assert run("explain", "--model", embedded_model, *given, "--repair", "none", "--json") == 0
    explained = json.loads(capsys.readouterr().out)
    assert list(explained) == [
        "schema",
        "digest",
        "num_cached_tokens",
        "num_new_tokens",
        "num_repaired_tokens",
        "next_position",
        "units",
        "segments",
    ]
    assert [unit["id"] for unit in explained["units"]] == ["travel", "travel/plan", "travel/plan/alps"]
    assert list(explained["units"][0]) == ["id", "digest", "context", "token_ids", "position_ids", "kept"]
    new = [segment for segment in explained["segments"] if "new" in segment]
    assert [list(segment) for segment in new] == [["new", "token_ids", "position_ids", "source"]] * 2
    assert explained["next_position"] == new[-1]["position_ids"][-1] + 1


def test_explain_draws_a_picture(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = SCHEMA.format("Water, " * 20) + PROMPT
    (folder / "both.pml").write_text(f"<pml>{both}</pml>")
    assert run("explain", "--model", embedded_model, "--prompt", "both.pml") == 0
    picture = capsys.readouterr().out
    assert "tokens reused" in picture
    assert "travel/plan/alps" in picture
    assert "' Where to go?'" in picture
    assert max(len(line) for line in picture.splitlines()) <= 130
    drawn = next(line for line in picture.splitlines() if line.startswith("0 "))
    assert set("█▒·") <= set(drawn)


def test_explain_shows_what_a_repair_computes_anew(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "travel.pml").write_text(SCHEMA.format("sea").replace("<schema ", "<schema encode='isolated' "))
    given = ("explain", "--model", embedded_model, "--schema", "travel.pml", "--prompt", "ask.xml")
    assert run(*given, "--repair", "link:3+tail") == 0
    picture = capsys.readouterr().out
    assert "of them repaired)" in picture and "◆ repaired" in picture
    assert "◆ link:travel/plan/alps" in picture and "◆ tail:travel/plan" in picture
    assert run(*given, "--repair", "link:3+tail", "--json") == 0
    explained = json.loads(capsys.readouterr().out)
    repaired = [segment["source"] for segment in explained["segments"] if segment.get("repaired")]
    assert repaired == ["link:travel/plan", "tail:travel/plan", "link:travel/plan/alps"]
    assert explained["num_repaired_tokens"] > 6
    with pytest.raises(SystemExit):
        run(*given, "--repair", "link:zero")
    assert "unknown repair 'link:zero'; allowed are 'none', 'full', 'link:K'" in capsys.readouterr().err


def test_explain_shows_a_chat(folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the model's template writes around the messages is there, and text parts are one text."""
    given = ("explain", "--model", embedded_model, "--schema", "travel.pml", "--prompt", "ask.xml")
    parts = [{"type": "text", "text": "Soon?"}, "Or late?"]
    Path("messages.json").write_text(json.dumps([{"role": "user", "content": parts}]))
    assert run(*given, "--messages", "messages.json", "--json") == 0
    explained = json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    texts = [tokenizer.decode(s["token_ids"]) for s in explained["segments"] if s.get("source") == "messages"]
    assert texts == ["\nSoon?\nOr late?<|im_end|>\n<|im_start|>assistant\n"]
    assert run(*given, "--messages", "messages.json") == 0
    assert "▒ messages" in capsys.readouterr().out


def test_explain_takes_a_request_s_body(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tools that the template does not write are told of, in JSON and below the picture."""
    Path("act.pml").write_text('<schema name="act"><system>You act.<tools/></system></schema>')
    Path("go.pml").write_text('<prompt schema="act"/>')
    tool = {"type": "function", "function": {"name": "go", "parameters": {}}}
    Path("body.json").write_text(
        json.dumps({"messages": [{"role": "user", "content": "Go."}], "tools": [tool]})
    )
    given = ("explain", "--model", embedded_model, "--schema", "act.pml", "--prompt", "go.pml")
    body = ("--messages", "body.json", "--tools", "body.json")
    note = "the model's chat template writes no text of its own for these tools"
    assert run(*given, *body) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"note: {note}"
    assert run(*given, *body, "--json") == 0
    assert json.loads(capsys.readouterr().out)["notes"] == [note]


def test_explain_says_where_the_schema_s_order_is_used(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("both.pml").write_text(
        '<pml><schema name="s"><module name="a">One.</module><module name="b">Two.</module></schema>'
        '<prompt schema="s"><b/><a/>Which?</prompt></pml>'
    )
    assert run("explain", "--model", embedded_model, "--prompt", "both.pml") == 0
    assert "order" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0] holds more than text"),
        ([{"content": "Who?"}], "messages[0] has no role"),
        ({"prompt": "Who?"}, "holds no list of messages"),
        (["Who?"], "holds no list of messages"),
    ],
)
def test_explain_says_what_is_no_chat(
    folder: Path,
    embedded_model: Path,
    capsys: pytest.CaptureFixture[str],
    messages: object,
    expected: str,
) -> None:
    given = ("explain", "--model", embedded_model, "--schema", "travel.pml", "--prompt", "ask.xml")
    Path("messages.json").write_text(json.dumps(messages))
    assert run(*given, "--messages", "messages.json") == 2
    assert expected in capsys.readouterr().err
    assert run(*given, "--messages", "nowhere.json") == 2
    assert "cannot read 'nowhere.json'" in capsys.readouterr().err


def test_explain_reports_what_is_wrong(
    folder: Path, embedded_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("explain", "--model", embedded_model)
    assert run(*model, "--prompt", "ask.xml") == 1
    assert capsys.readouterr().err == "ask.xml:1:9: prompt/@schema: unknown schema 'travel'\n"
    assert run(*model, "--schema", "ask.xml", "--prompt", "travel.pml") == 2
    assert "there is no prompt in 'travel.pml'" in capsys.readouterr().err
    assert run("explain", "--model", folder, "--schema", "travel.pml", "--prompt", "ask.xml") == 2
    assert "cannot load the tokenizer" in capsys.readouterr().err


def test_compile_prints_a_schema(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "programs.py").write_text(
        'def greet(late=False):\n    "Hello."\n    if late:\n        "Late!"\n'
    )
    expected = '<schema name="{}" space="preserve">Hello.\n<module name="late">Late!\n</module></schema>\n'
    assert run("compile", "programs:greet") == 0
    assert capsys.readouterr().out == expected.format("greet")
    assert run("compile", "programs.py:greet", "--name", "hello") == 0
    assert capsys.readouterr().out == expected.format("hello")
    assert "" not in sys.path[:1]


@pytest.mark.parametrize(
    "program", ["programs", "nowhere:f", "programs.py:f", "nothing.py:f", ":f", "os:getcwd"]
)
def test_compile_says_what_it_cannot_find(
    folder: Path, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "programs.py").write_text("x = 1\n")
    assert run("compile", program) == 2
    assert capsys.readouterr().err.startswith("vllm-promptcache compile: ")


def test_compile_reports_the_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "loop.py").write_text('\ndef loop(n):\n    "Hello."\n    while n:\n        "x"\n')
    assert run("compile", "loop.py:loop") == 1
    assert capsys.readouterr().err.endswith(
        "/loop.py:4:5: loop: a prompt program holds strings, if, match, with system(), and calls of other prompt programs\n"
    )


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in ((["--version"], 0), ([], 2), (["check"], 2), (["nothing"], 2)):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == code
    assert __version__ in capsys.readouterr().out


def test_no_command_imports_vllm(folder: Path, embedded_model: Path) -> None:
    code = (
        "import sys; from vllm_promptcache.cli.main import main;"
        f"main(['explain', '--model', {str(embedded_model)!r}, '--schema', 'travel.pml', '--prompt', 'ask.xml']);"
        "sys.exit('vllm' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=folder)
