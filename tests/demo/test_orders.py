"""Composed prompts as plain tokens in other orders."""

from demo.orders import PlainPrompt, new_orders

PLAN = {
    "schema": "s",
    "units": [
        {"id": "s", "token_ids": [1, 2, 3, 4]},
        {"id": "s/a", "token_ids": [10, 11, 99, 12]},
        {"id": "s/a/b", "token_ids": [20, 21]},
    ],
    "segments": [
        {"unit": "s", "start": 0, "end": 2},
        {"unit": "s/a", "start": 0, "end": 2},
        {"new": True, "token_ids": [50, 51]},
        {"unit": "s/a/b", "start": 0, "end": 2},
        {"unit": "s/a", "start": 3, "end": 4},
        {"unit": "s", "start": 2, "end": 4},
        {"new": True, "token_ids": [60]},
    ],
}


def test_a_plan_is_taken_apart() -> None:
    prompt = PlainPrompt.from_plan(PLAN)
    assert prompt == PlainPrompt((1, 2), ((10, 11, 50, 51, 12), (20, 21)), (3, 4, 60))
    assert prompt.in_order((1, 0)) == [1, 2, 20, 21, 10, 11, 50, 51, 12, 3, 4, 60]


def test_new_text_after_the_last_module_stays_last() -> None:
    plan = {**PLAN, "segments": [*PLAN["segments"][:2], PLAN["segments"][-1]]}
    assert PlainPrompt.from_plan(plan) == PlainPrompt((1, 2), ((10, 11),), (60,))


def test_orders_are_new_and_the_same_every_time() -> None:
    orders = new_orders(4, 10)
    assert orders == new_orders(4, 10)
    assert len(set(orders)) == 10
    assert (0, 1, 2, 3) not in orders
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)


def test_few_modules_have_few_orders() -> None:
    assert new_orders(2, 5) == [(1, 0)]
    assert new_orders(1, 5) == []
