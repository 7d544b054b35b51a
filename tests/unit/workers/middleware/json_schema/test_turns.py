"""Turns and budgets of those whose schemas are checked."""

from workers.middleware.schema_checker import Budget, Turns


def test_each_tenant_has_a_turn_after_the_other() -> None:
    turns = Turns[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        turns.add(item[0], item)

    assert [turns.next() for _ in range(6)] == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_had_the_last_turn_comes_after_who_has_come_since() -> None:
    turns = Turns[str]()
    turns.add("a", "a1")
    turns.add("a", "a2")
    first = turns.next()
    turns.add("b", "b1")

    assert [first, turns.next(), turns.next()] == ["a1", "b1", "a2"]


def test_what_is_slow_is_spent_and_forgiven_in_time() -> None:
    at = 0.0
    budget = Budget(clock=lambda: at)

    for _ in range(1000):
        budget.took("quick", 0.9)
    for _ in range(5):
        assert not budget.is_spent("slow")
        budget.took("slow", 5.0)

    assert (budget.is_spent("quick"), budget.is_spent("slow")) == (False, True)
    at = 16.0
    assert not budget.is_spent("slow")
    at = 200.0
    budget.took("other", 5.0)
    assert set(budget._spent) == {"other"}
