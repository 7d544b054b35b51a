"""During each attack by one key, in a small dose, another project is answered: nothing lost, no 5xx, memory bounded.

How long the answers take is not judged here; `make bad-inputs` says it, on a machine that does nothing else.
"""

import math
from collections.abc import Iterator

import pytest

from tests.badinputs.attacks import ATTACKS, Attack
from tests.badinputs.neighbours import MIB, Deployment, Noted, attackers, cost, row, wrong
from tests.support.system import ROOT

DOSE = 0.1


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("up"), ROOT, embeds=True) as deployment:
        yield deployment


@pytest.mark.verify
@pytest.mark.timeout(600)
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_other_projects_are_served_during_an_attack(deployment: Deployment, attack: Attack) -> None:
    with attackers() as run:
        measured = cost(attack, deployment, run, DOSE, most_seconds=math.inf)

    assert measured.wrong == (), row(measured)
    assert all(noted.seconds for noted in measured.probes.values())


@pytest.mark.parametrize(
    ("noted", "sizes", "expected"),
    [
        (Noted([0.1]), {"web": 10 * MIB}, []),
        (Noted([0.1, 60.0], ["ReadTimeout"]), {}, ["create lost 1 (ReadTimeout)", "create took 60 s"]),
        (Noted([0.1], ["503", "503"]), {}, ["create lost 2 (503)"]),
        (Noted(), {}, ["no create was answered"]),
        (Noted([0.1]), {"web": 401 * MIB, "broker": 201 * MIB, "written": 501 * MIB},
         ["web 401 MB", "broker 201 MB", "written 501 MB"]),
    ],
)  # fmt: skip
def test_a_bound_that_is_broken_is_named(noted: Noted, sizes: dict[str, int], expected: list[str]) -> None:
    attack = Attack("none", "nothing", lambda _: "")

    assert list(wrong(attack, {"create": noted}, sizes, 1.0)) == expected


def test_a_stream_may_take_as_long_as_its_events() -> None:
    attack = Attack("none", "nothing", lambda _: "")

    assert list(wrong(attack, {"stream": Noted([60.0])}, {}, 1.0)) == []
