"""Who is served next: a table of cases."""

from dataclasses import replace

import pytest

from jobs.outbox import Ring
from workers.fairness import choose


def _rings(project: str, count: int) -> list[Ring]:
    return [Ring(n, "run", "gpu.generate", f"{project}-job", n, project) for n in range(count)]


@pytest.mark.parametrize(
    ("waiting", "load", "weights", "room", "expected"),
    [
        ({"a": 5}, {}, {}, 3, "aaa"),
        ({"a": 100, "b": 2}, {}, {}, 4, "abab"),
        ({"a": 100, "b": 2}, {"a": 4}, {}, 3, "bba"),
        ({"a": 9, "b": 9}, {}, {"a": 2.0, "b": 1.0}, 6, "abaaba"),
        ({"a": 0, "b": 1}, {}, {}, 5, "b"),
        ({"a": 3}, {}, {}, 0, ""),
        ({}, {"a": 1}, {}, 4, ""),
    ],
)
def test_least_loaded_project_per_weight_comes_first(
    waiting: dict[str, int], load: dict[str, int], weights: dict[str, float], room: int, expected: str
) -> None:
    rings = {project: _rings(project, count) for project, count in waiting.items()}

    chosen = choose(rings, load, weights, room)

    assert "".join(ring.project_id for ring in chosen) == expected


def test_each_project_keeps_its_own_order() -> None:
    chosen = choose({"a": _rings("a", 4), "b": _rings("b", 4)}, {}, {}, 8)

    assert [ring.shard_n for ring in chosen if ring.project_id == "a"] == [0, 1, 2, 3]


def test_small_work_takes_a_part_of_the_room_and_a_whole_turn() -> None:
    small = [replace(ring, small=True) for ring in _rings("a", 20)]

    chosen = choose({"a": small, "b": _rings("b", 9)}, {}, {}, 2, 1 / 4)

    assert "".join(ring.project_id for ring in chosen) == "abab"
    assert len(choose({"a": small}, {}, {}, 2, 1 / 4)) == 8
