"""KV blocks that requests need which share a module (paper, section 3.4, argued there, not measured)."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any, cast
from xml.sax.saxutils import escape

from benchmarks.harness.engine import core_of, in_own_process, make_engine, one_layer_of
from benchmarks.harness.modules import Module, make_module
from benchmarks.harness.plot import Panel, Series
from benchmarks.harness.report import Figure, Table
from benchmarks.harness.run import Cell, Result, Run
from benchmarks.harness.settings import Settings
from benchmarks.harness.spread import Spread
from benchmarks.harness.text import TextSource, read_corpus

WAYS = {
    "plain": "vLLM without prefix cache: nothing is shared",
    "prefix": "vLLM with prefix cache, the shared text first",
    "composed": "composed",
}
NUM_ANSWER_TOKENS = 32
NUM_MEMBERS = 10
NUM_NEW_TOKENS = 24


@dataclass(frozen=True)
class Case:
    """Requests of ``shared`` tokens in a module that all include and ``own`` tokens of their own.

    ``own_in_union``: those are one of ten members of a union, with 24 new tokens after it.
    """

    name: str
    shared: int
    own: int
    own_in_union: bool = False


# The answer ends where a block ends, in the first: sharing is shown without the waste of last blocks.
CASES = (
    Case("1,024 shared of 2,016", 1024, 992),
    Case("1,000 shared of 2,000 (ragged)", 1000, 1000),
    Case("unions: 1,024 shared, one of ten members of 968", 1024, 968, own_in_union=True),
)


def add_arguments(parser: Any) -> None:
    """Options of this benchmark."""
    parser.add_argument("--requests", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--no-scarce", action="store_true", help="only peak blocks, not who waits when")


def run(run: Run, args: argparse.Namespace) -> None:
    """Each case and way on a fresh engine: with blocks for all, then with half of what plain needs."""
    count = 12 if run.settings.quick else args.requests
    run.result["ways"] = WAYS
    for case in CASES[:1] if run.settings.quick else CASES:
        for way in WAYS:
            key = f"{case.name} · {way}"
            if run.wants(key):
                cell = in_own_process(measure, run.settings, case, way, count, None)
                run.add(key, {"case": asdict(case), "way": way, "requests": count, **cell})
                run.say(f"{key}: {cell['peak_blocks']} blocks")
        if args.no_scarce or any(not run.has(f"{case.name} · {way}") for way in WAYS):
            continue
        half = run.result["cells"][f"{case.name} · plain"]["peak_blocks"] // 2
        for way in WAYS:
            key = f"{case.name} · {way} · {half} blocks"
            if run.wants(key):
                cell = in_own_process(measure, run.settings, case, way, count, half)
                run.add(key, {"case": asdict(case), "way": way, "requests": count, "blocks": half, **cell})
                run.say(f"{key}: {cell['in_flight_before_first_waits']} in flight before the first waits")


class _Enough(Exception):
    """The first request waits: no need to go on."""


class _Watch:
    """Watches the scheduler of an engine; nothing is changed."""

    def __init__(self, llm: Any, *, until_one_waits: bool):
        self.scheduler = core_of(llm).scheduler
        self.manager = self.scheduler.kv_cache_manager
        self.num_blocks = self.manager.block_pool.num_gpu_blocks - 1
        self.block_size = self.manager.coordinator.single_type_managers[0].block_size
        self.peak_blocks = self.most_in_flight = 0
        self.in_flight_before_first_waits: int | None = None
        self._until_one_waits = until_one_waits
        self._schedule, self._allocate = self.scheduler.schedule, self.manager.allocate_slots
        self.scheduler.schedule, self.manager.allocate_slots = self.schedule, self.allocate

    def allocate(self, *args: Any, **kwargs: Any) -> Any:
        """As the manager's; notes the first refusal."""
        blocks = self._allocate(*args, **kwargs)
        if blocks is None and self.in_flight_before_first_waits is None:
            self.in_flight_before_first_waits = len(self.scheduler.running)
        return blocks

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As the scheduler's; notes blocks and requests."""
        if self._until_one_waits and self.in_flight_before_first_waits is not None:
            raise _Enough
        output = self._schedule(*args, **kwargs)
        used = self.num_blocks - self.manager.block_pool.get_num_free_blocks()
        self.peak_blocks = max(self.peak_blocks, used)
        self.most_in_flight = max(self.most_in_flight, len(self.scheduler.running))
        return output


def measure(settings: Settings, case: Case, way: str, count: int, num_blocks: int | None) -> Cell:
    """Ask all requests at once and watch. Runs in a process of its own."""
    from vllm import SamplingParams, TokensPrompt

    changes: dict[str, Any] = {"enable_prefix_caching": way != "plain", "max_num_seqs": max(count, 16) + 28}
    changes["kv_cache_memory_bytes"] = _kv_bytes(settings, case, count)
    # Blocks are counted, which no weight and no layer changes.
    changes |= one_layer_of(settings)
    if num_blocks is not None:
        changes["num_gpu_blocks_override"] = num_blocks + 1
    llm = make_engine(settings, composed=way == "composed", **changes)
    source = TextSource(read_corpus(settings.data), llm.get_tokenizer(), settings.seed)
    shared = make_module("shared", case.shared, source)
    members = [make_module(f"member{i}", case.own, source) for i in range(NUM_MEMBERS)]
    params = SamplingParams(max_tokens=NUM_ANSWER_TOKENS, ignore_eos=True, temperature=0.0)
    own = [_own(case, source, members, index) for index in range(count)]
    watch = _Watch(llm, until_one_waits=num_blocks is not None)
    try:
        if way == "composed":
            llm.add_schema(_schema(case, shared, members))
            llm.generate_pml([_prompt(member, new) for member, new in own], params)
        else:
            plain = [[*shared.token_ids, *_token_ids(source, *one)] for one in own]
            llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in plain], params, use_tqdm=False)
    except _Enough:
        pass
    return {
        "peak_blocks": watch.peak_blocks,
        "most_in_flight": watch.most_in_flight,
        "in_flight_before_first_waits": watch.in_flight_before_first_waits,
        "block_size": watch.block_size,
    }


Own = tuple[Module | None, str]


def _own(case: Case, source: TextSource, members: list[Module], index: int) -> Own:
    """What one request has of its own: a member of the union and new text, or new text only."""
    if case.own_in_union:
        return members[index % len(members)], source.take(NUM_NEW_TOKENS)
    return None, source.take(case.own)


def _token_ids(source: TextSource, member: Module | None, new: str) -> list[int]:
    return [*(member.token_ids if member else ()), *source.token_ids(new)]


def _schema(case: Case, shared: Module, members: list[Module]) -> str:
    union = "".join(m.to_pml() for m in members) if case.own_in_union else ""
    return f'<schema name="s">{shared.to_pml()}{f"<union>{union}</union>" if union else ""}</schema>'


def _prompt(member: Module | None, new: str) -> str:
    chosen = f"<{member.name}/>" if member else ""
    return f'<prompt schema="s"><shared/>{chosen}{escape(new)}</prompt>'


def _kv_bytes(settings: Settings, case: Case, count: int) -> int:
    """One layer's KV cache for all requests at once without sharing, and as much again."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(settings.model)
    heads = config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    element = 4 if settings.dtype == "float32" else 2
    num_tokens = (count + NUM_MEMBERS) * (case.shared + case.own + NUM_NEW_TOKENS + 2 * 256)
    return int(2 * heads * size * element * num_tokens)


# -- the result ----------------------------------------------------------------------------------------


def _cell(result: Result, name: str, way: str, *, scarce: bool) -> Cell | None:
    for cell in result["cells"].values():
        if (cell["case"]["name"], cell["way"], "blocks" in cell) == (name, way, scarce):
            return cast(Cell, cell)
    return None


def _share(result: Result, name: str, way: str) -> float | None:
    """Blocks of a way over those of plain."""
    ours, plain = (_cell(result, name, w, scarce=False) for w in (way, "plain"))
    return ours["peak_blocks"] / plain["peak_blocks"] if ours and plain else None


def tables(result: Result) -> list[Table]:
    """Peak blocks, and requests in flight before the first waits for blocks."""
    rows = []
    for case in CASES:
        for way, what in WAYS.items():
            full, scarce = (_cell(result, case.name, way, scarce=s) for s in (False, True))
            if full is None:
                continue
            share = _share(result, case.name, way)
            waits = "–" if scarce is None else str(scarce["in_flight_before_first_waits"] or "none waits")
            rows.append(
                (
                    case.name,
                    what,
                    str(full["peak_blocks"]),
                    "–" if share is None else f"{share:.1%}",
                    str(full["most_in_flight"]),
                    waits if scarce is None else f"{waits} (of {scarce['blocks']} blocks)",
                )
            )
    columns = (
        "requests",
        "way",
        "peak blocks",
        "of plain",
        "in flight at most",
        "in flight before one waits",
    )
    cell = next(iter(result["cells"].values()))
    note = (
        f"{cell['requests']} requests at once, {NUM_ANSWER_TOKENS} tokens answered (one layer of the model, "
        f"random weights: blocks do not depend on them), blocks of {cell['block_size']} tokens, read from "
        "the block pool after every scheduling step."
    )
    return [Table("Blocks", columns, tuple(rows), note)]


def figures(result: Result) -> list[Figure]:
    """At most 52% of the blocks."""
    return [
        Figure(f"blocks with / without sharing: {case.name}", share, 0.52, True)
        for case in CASES
        if (share := _share(result, case.name, "composed")) is not None
    ]


def panels(result: Result) -> list[Panel]:
    """Peak blocks and requests in flight, by case and way."""
    blocks, flights = [], []
    for way in WAYS:
        full = [(c.name, _cell(result, c.name, way, scarce=False)) for c in CASES]
        scarce = [(c.name, _cell(result, c.name, way, scarce=True)) for c in CASES]
        blocks.append(Series(way, tuple((n, _point(c["peak_blocks"])) for n, c in full if c)))
        waiting = [(n, c, c["in_flight_before_first_waits"] or c["requests"]) for n, c in scarce if c]
        flights.append(Series(way, tuple((n, _point(number)) for n, _, number in waiting)))
    return [
        Panel("Peak blocks", "", "blocks", tuple(blocks), bars=True),
        Panel("In flight before the first waits", "", "requests", tuple(flights), bars=True),
    ]


def _point(value: float) -> Spread:
    return Spread(value, value, value, 1)
