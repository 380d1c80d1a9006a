"""What the demo shows, from the first line to the table."""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from demo.client import Answer, Client
from demo.errors import DemoError
from demo.machine import available_memory, choose_port, require_memory
from demo.measure import measure, measure_passages, render_timings
from demo.model import open_model, runs_on_cpu
from demo.output import heading, note, say, step, stream
from demo.packages import Description, find_descriptions, write_schema
from demo.server import (
    Server,
    render_command,
    running_server,
    serve_command,
    serve_environment,
)

# A small model's first sentence is its best.
ANSWER_TOKENS = 48
STOP = (".", "\n")
# Packages in the schema, modules in the prompt, and questions that are asked of it.
NUM_PACKAGES, NUM_MODULES, NUM_QUESTIONS = 6, 4, 3
# Passages to choose from, how long one is, how many come again and again, and in how many orders.
NUM_PASSAGES, PASSAGE_CHARACTERS, NUM_OFTEN, NUM_ORDERS = 200, 900, 6, 4
# How long a server that has stopped answering may take to end.
DYING_S = 10.0
TEMPORARY_PREFIX = "vllm-promptcache-demo-"

MALDIVES = (
    '<prompt schema="travel"><trip duration="three days" travellers="two parents and a girl of six">'
    "<maldives/><plane/></trip><children/></prompt>"
)
ALPS = '<prompt schema="travel"><trip><alps/><train/></trip></prompt>'


@dataclass(frozen=True)
class Scene:
    """A prompt, what is different about it, and the questions that are asked of it."""

    says: str
    pml: str
    questions: tuple[str, ...]


TRAVEL_SCENES = (
    Scene(
        "Two modules of two unions, one more module, and two arguments:",
        MALDIVES,
        (
            "When is the best season for the Maldives?",
            "What is the first thing to do in the Maldives?",
            "What is the best souvenir?",
        ),
    ),
    Scene(
        "Other members of the unions, at the same positions, and no arguments:",
        ALPS,
        ("When is the best season for the Alps?", "What is the best souvenir?"),
    ),
)


@dataclass(frozen=True)
class DemoOptions:
    """What the command line can say; None leaves it to the demo."""

    model: str | None = None
    dtype: str | None = None
    port: int | None = None
    rounds: int = 5


def run_demo(options: DemoOptions) -> None:
    """Runs the demo from start to end and leaves nothing behind.

    Raises:
        DemoError: it could not go on. The server's log is kept then, and named in the message.
    """
    port = choose_port(options.port)
    heading("The model")
    step("looking at the model and the machine")
    model = open_model(options.model, options.dtype)
    dtype = "its own data type" if model.dtype == "auto" else model.dtype
    step(f"{model.name}, to be served in {dtype}")
    if runs_on_cpu():
        require_memory(model.needed_bytes, available_memory(), f"serving {model.name}")
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
    try:
        schemas, packages = _write_schemas(folder)
        command = serve_command(model, port, [schemas])
        heading("The server")
        say(f"{render_command(command)}\n")
        environment = serve_environment(model, folder)
        log = folder / "server.log"
        with running_server(command, environment, port, log) as server:
            try:
                server.wait_until_ready(step)
                step("the server is ready")
                _show(server, Client(server.url, model.name), packages, options.rounds)
            except DemoError as error:
                raise DemoError(f"{error}\n\nAll of the log: {_keep(log)}") from error
        say()
        step("the server is stopped")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_schemas(folder: Path) -> tuple[Path, list[Description]]:
    """A folder with both schemas, and the packages that the second one describes."""
    schemas = folder / "schemas"
    schemas.mkdir()
    travel = resources.files(__package__) / "travel.pml"
    (schemas / "travel.pml").write_bytes(travel.read_bytes())
    packages = find_descriptions(NUM_PACKAGES)
    if not packages:
        raise DemoError("no installed package carries a description: the demo has nothing to ask about")
    write_schema(schemas, packages)
    return schemas, packages


def _show(server: Server, client: Client, packages: list[Description], rounds: int) -> None:
    from openai import OpenAIError

    try:
        passages = find_descriptions(NUM_PASSAGES, max_characters=PASSAGE_CHARACTERS)
        _ask(client, packages, passages)
        _measure(client, packages, passages, rounds)
    # A server that dies shows in many ways here.
    except Exception as error:
        server.require_alive(DYING_S)
        if not isinstance(error, OpenAIError):
            raise
        raise DemoError(f"a request failed: {error}\n\n{server.log_tail()}") from error


def _ask(client: Client, packages: list[Description], passages: list[Description]) -> None:
    heading("Passages, in another order each time")
    _play_passages(client, passages)
    heading("A travel planner")
    for scene in TRAVEL_SCENES:
        _play(client, scene)
    heading("Descriptions of installed packages")
    names = ", ".join(each.package for each in packages)
    note(f"The second schema was written a moment ago, from the metadata of {names}.")
    say()
    _play(client, _packages_scene(packages))


def passage_orders(num_passages: int) -> list[list[int]]:
    """Which passages each question has before it: some are there again and again, at other places."""
    order = random.Random(1)
    often = order.sample(range(num_passages), min(NUM_OFTEN, num_passages))
    return [order.sample(often, min(NUM_MODULES, len(often))) for _ in range(NUM_ORDERS)]


def _play_passages(client: Client, passages: list[Description]) -> None:
    note(
        f"Plain chat requests over {len(passages)} passages, a few in each, ranked anew for each question."
        " They carry a mark, and there is no schema."
    )
    say()
    for order in passage_orders(len(passages)):
        chosen = [passages[index] for index in order]
        say(f"  {', '.join(each.package for each in chosen)}")
        question = f"What is {chosen[0].package}?"
        say(f"  > {question}")
        answering = client.chat_over(
            [each.text for each in chosen], question, max_tokens=ANSWER_TOKENS, stop=STOP
        )
        stream(answering, "    ")
        answer = answering.answer
        assert answer is not None
        _say_counts(answer)


def _packages_scene(packages: list[Description]) -> Scene:
    chosen = packages[:NUM_MODULES]
    modules = "".join(f"<{each.module}/>" for each in chosen)
    return Scene(
        f"{len(chosen)} of its {len(packages)} modules, in one user's message with the question:",
        f'<prompt schema="packages">{modules}</prompt>',
        tuple(f"What is {each.package}?" for each in chosen[:NUM_QUESTIONS]),
    )


def _play(client: Client, scene: Scene) -> None:
    say(f"  {scene.says}")
    say(f"  {scene.pml}\n")
    for question in scene.questions:
        say(f"  > {question}")
        answering = client.chat(scene.pml, question, max_tokens=ANSWER_TOKENS, stop=STOP)
        stream(answering, "    ")
        answer = answering.answer
        assert answer is not None
        _say_counts(answer)


def _say_counts(answer: Answer) -> None:
    say(
        f"    [{answer.num_prompt_tokens} tokens in the prompt, {answer.num_reused_tokens} reused;"
        f" first token after {answer.first_token_s:.2f} s]\n"
    )


def _measure(client: Client, packages: list[Description], passages: list[Description], rounds: int) -> None:
    heading("Time to first token")
    travel, described = TRAVEL_SCENES[0], _packages_scene(packages)
    often = [
        passages[index] for index in sorted({i for order in passage_orders(len(passages)) for i in order})
    ]
    texts, asked = [each.text for each in often], [f"What is {each.package}?" for each in often]
    all_timings = [
        measure_passages(client, "passages", texts, asked, rounds, step),
        measure(client, "travel", travel.pml, travel.questions, rounds, step),
        measure(client, "packages", described.pml, described.questions, rounds, step),
    ]
    say()
    say(render_timings(all_timings))


def _keep(log: Path) -> Path:
    """Moves the log out of the folder that is removed at the end."""
    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix=".log")
    with open(handle, "wb") as kept:
        kept.write(log.read_bytes())
    return Path(name)


def main_stream_is_safe() -> None:
    """Lets stdout replace what its encoding does not have, so that an answer never ends the demo."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
