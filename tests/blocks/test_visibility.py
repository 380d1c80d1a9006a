"""The contract of slot layouts and rows: each new token sees what stands before it, each token once."""

from hypothesis import given
from hypothesis import strategies as st

from tests.blocks.memory import Memory, Running, encoding_of, expected_seen, step
from tests.blocks.strategies import World, compositions, worlds
from vllm_promptcache.blocks.composition import Composition
from vllm_promptcache.blocks.heads import take_from_heads


def check(request: Running, composition: Composition, num_generated: int = 0) -> None:
    """Compare what a request's tokens saw, and their positions, with the definition."""
    seen, positions = expected_seen(composition, request.name)
    for index in range(num_generated):
        seen.append([*seen[-1], (request.name, len(seen))])
        positions.append(positions[-1] + 1)
        assert index < num_generated
    assert request.positions == positions
    assert len(request.seen) == len(seen)
    for found, wanted in zip(request.seen, seen, strict=True):
        assert found[-1] == wanted[-1], "a token sees itself last"
        assert len(found) == len(wanted)
        assert sorted(map(str, found)) == sorted(map(str, wanted))


def cut(draw: st.DrawFn, num_tokens: int) -> list[int]:
    """Random chunk lengths that sum to `num_tokens`."""
    chunks: list[int] = []
    while sum(chunks) < num_tokens:
        chunks.append(draw(st.integers(1, num_tokens - sum(chunks))))
    return chunks


@given(st.data(), worlds())
def test_new_tokens_see_exactly_what_stands_before_them(data: st.DataObject, world: World) -> None:
    composition = data.draw(compositions(world))
    memory = Memory(world.block_size)
    for name, unit in world.units.items():
        memory.store(name, unit)
    request = Running(memory, composition, "request")
    assert request.slot_layout.num_cached_tokens == composition.num_cached_tokens
    assert request.slot_layout.num_prompt_tokens == composition.num_tokens
    step([(request, composition.num_tokens - composition.num_cached_tokens)])
    check(request, composition)


@given(st.data(), worlds())
def test_chunks_cut_anywhere_see_the_same(data: st.DataObject, world: World) -> None:
    composition = data.draw(compositions(world))
    memory = Memory(world.block_size)
    for name, unit in world.units.items():
        memory.store(name, unit)
    num_generated = data.draw(st.integers(0, 2 * world.block_size + 1))
    request = Running(memory, composition, "request", num_generated)
    num_new = composition.num_tokens - composition.num_cached_tokens
    # A preempted request computes its prompt and what it generated together: chunks may span both.
    for scheduled in cut(data.draw, num_new + num_generated):
        step([(request, scheduled)])
    check(request, composition, num_generated)


@given(st.data(), worlds())
def test_heads_of_units_can_be_computed_anew(data: st.DataObject, world: World) -> None:
    head_tokens = data.draw(st.integers(1, 2 * world.block_size + 1))
    composition = data.draw(compositions(world, head_tokens))
    memory = Memory(world.block_size)
    for name, unit in world.units.items():
        memory.store(name, unit)
    taken = take_from_heads(
        composition,
        memory.geometries,
        lambda name, end: memory.store_head(name, world.units[str(name)], end),
    )
    request = Running(memory, taken, "request")
    assert request.slot_layout.num_cached_tokens == taken.num_cached_tokens == composition.num_cached_tokens
    step([(request, composition.num_tokens - composition.num_cached_tokens)])
    check(request, composition)


@given(st.data(), worlds(max_sites=8))
def test_requests_in_one_batch_share_blocks_and_nothing_else(data: st.DataObject, world: World) -> None:
    memory = Memory(world.block_size)
    for name, unit in world.units.items():
        memory.store(name, unit)
    composed = [data.draw(compositions(world)) for _ in range(data.draw(st.integers(1, 3)))]
    requests = [Running(memory, c, f"request {i}") for i, c in enumerate(composed)]
    left = [c.num_tokens - c.num_cached_tokens for c in composed]
    while any(left):
        batch = [(r, data.draw(st.integers(1, n))) for r, n in zip(requests, left, strict=True) if n]
        plain = data.draw(st.dictionaries(st.integers(0, 3), st.integers(1, 5), max_size=2))
        step(batch, plain)
        for request, scheduled in batch:
            left[requests.index(request)] -= scheduled
    for request, composition in zip(requests, composed, strict=True):
        check(request, composition)
        assert not set(request.private) & {b for r in requests if r is not request for b in r.table}


@given(st.data(), worlds())
def test_encoding_sees_the_own_unit_and_context_that_stands_before(data: st.DataObject, world: World) -> None:
    memory = Memory(world.block_size)
    for name, unit in world.units.items():
        composition, token_ids = encoding_of(name, world.units)
        assert len(token_ids) == composition.num_tokens
        request = Running(memory, composition, name)
        for scheduled in cut(data.draw, len(unit.token_ids)):
            step([(request, scheduled)])
        assert request.positions == unit.position_ids.tolist()
        for token, found in enumerate(request.seen):
            position = unit.position_ids[token]
            wanted = {(name, t) for t in range(token + 1)}
            for key in (seen.digest for seen in unit.context):
                other = world.units[key]
                before = other.kept & (other.position_ids < position)
                wanted |= {(key, t) for t in before.nonzero()[0].tolist()}
            assert len(found) == len(wanted)
            assert set(found) == wanted
        memory.store(name, unit)


@given(worlds())
def test_an_encoding_request_has_its_tokens_in_position_order(world: World) -> None:
    for name, unit in world.units.items():
        composition, token_ids = encoding_of(name, world.units)
        at = {
            p: t
            for key in (*(seen.digest for seen in unit.context), name)
            for p, t in _tokens(world, key, key == name)
        }
        _, positions = expected_seen(composition, name)
        assert positions == unit.position_ids.tolist()
        assert token_ids == [at[p] for p in sorted(at) if p <= unit.position_ids[-1]]


def _tokens(world: World, name: str, all_of_it: bool) -> list[tuple[int, int]]:
    unit = world.units[name]
    return [
        (position, token_id)
        for position, token_id, kept in zip(
            unit.position_ids.tolist(), unit.token_ids.tolist(), unit.kept.tolist(), strict=True
        )
        if kept or all_of_it
    ]


@given(st.data(), worlds(), st.integers(1, 40))
def test_windows_count_the_last_states_in_position_order(
    data: st.DataObject, world: World, window: int
) -> None:
    """By index in its row's table, a token's last states are those that stand last before it."""
    composition = data.draw(compositions(world))
    memory = Memory(world.block_size, window)
    for name, unit in world.units.items():
        memory.store(name, unit)
    num_generated = data.draw(st.integers(0, world.block_size))
    request = Running(memory, composition, "request", num_generated)
    assert request.slot_layout.num_cached_tokens == composition.num_cached_tokens
    for scheduled in cut(data.draw, composition.num_tokens - composition.num_cached_tokens + num_generated):
        step([(request, scheduled)])
    check(request, composition, num_generated)
    seen, _ = expected_seen(composition, request.name)
    for found, wanted in zip(request.seen, seen, strict=False):
        assert found[-window:] == wanted[-window:]


@given(st.data(), worlds())
def test_a_window_of_all_states_shares_no_blocks(data: st.DataObject, world: World) -> None:
    """Index and order are one: what ALiBi adds by distances between indices is by states then."""
    composition = data.draw(compositions(world))
    memory = Memory(world.block_size, 1_000_000, in_blocks=False)
    for name, unit in world.units.items():
        assert memory.store(name, unit).num_blocks == 0
    request = Running(memory, composition, "request")
    for scheduled in cut(data.draw, composition.num_tokens - composition.num_cached_tokens):
        step([(request, scheduled)])
    assert not request.shared
    assert request.seen == expected_seen(composition, request.name)[0]


@given(st.data(), worlds(), st.integers(2, 40))
def test_windows_over_heads(data: st.DataObject, world: World, window: int) -> None:
    composition = data.draw(compositions(world, data.draw(st.integers(1, 2 * world.block_size + 1))))
    memory = Memory(world.block_size, window)
    for name, unit in world.units.items():
        memory.store(name, unit)
    taken = take_from_heads(
        composition,
        memory.geometries,
        lambda name, end: memory.store_head(name, world.units[str(name)], end),
    )
    request = Running(memory, taken, "request")
    step([(request, composition.num_tokens - composition.num_cached_tokens)])
    seen, _ = expected_seen(composition, request.name)
    for found, wanted in zip(request.seen, seen, strict=True):
        assert found[-window:] == wanted[-window:]
