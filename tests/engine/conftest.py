"""Engines for tests; every test ends with a check that no block is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.oracle import Oracle
from tests.engine.support import Engine, SharedEngine, close_all, open_engines
from vllm_promptcache.engine.accounting import stats
from vllm_promptcache.engine.stored_unit import Residency


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return Oracle()


@pytest.fixture(scope="module")
def shared_engine(tiny_model: Path) -> Iterator[SharedEngine]:
    """One engine with the tiny model and plenty of blocks for all tests of a file."""
    yield SharedEngine(tiny_model)
    close_all()


@pytest.fixture
def engine(shared_engine: SharedEngine) -> Engine:
    """The file's shared engine with nothing resident."""
    return shared_engine.get()


@pytest.fixture(autouse=True)
def no_block_is_lost() -> Iterator[None]:
    """Whatever a test did: free + modules + in use + null = total, also once everything is over."""
    yield
    for engine in list(open_engines):
        try:
            engine.check()
            engine.finish_or_abort()
            engine.check()
            if engine.has_prompt_cache:
                _nobody_holds_anything(engine)
        except BaseException:
            engine.close()  # the next test starts another one
            raise


def _nobody_holds_anything(engine: Engine) -> None:
    """Only modules hold blocks; units are known for their states, a pin, or a unit in their context."""
    counts = stats(engine.store)
    assert counts["blocks_free"] + counts["blocks_modules"] == counts["blocks_total"]
    units = list(engine.store.known.by_key.values())
    for unit in units:
        assert not unit.users
        assert unit.holders == sum(unit.key in other.seen for other in units)
        assert unit.holders or unit.pinned or unit.residency is Residency.RESIDENT
