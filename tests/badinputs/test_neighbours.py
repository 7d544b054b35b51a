"""During each attack by one key, in a small dose, another project is answered: nothing lost, no 5xx, memory bounded.

How long the answers take is not judged here; `make bad-inputs` says it, on a machine that does nothing else.
"""

import math
from collections.abc import Iterator

import pytest

from tests.badinputs.attacks import ATTACKS, Attack
from tests.badinputs.neighbours import Cost, Deployment, attackers, cost, row
from tests.support.system import ROOT

DOSE = 0.1
pytestmark = [pytest.mark.verify, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("up"), ROOT, embeds=True) as deployment:
        yield deployment


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_others_go_on(deployment: Deployment, attack: Attack) -> None:
    with attackers() as run:
        measured = cost(attack, deployment, run, DOSE, most_seconds=math.inf)

    assert measured.wrong == (), row(measured)
    assert all(noted.seconds for noted in measured.probes.values())


def test_the_verdict_names_what_was_lost(deployment: Deployment) -> None:
    def harmless(_: Attack, __: object) -> str:
        return "nothing"

    attack = Attack("none", "nothing", lambda _: "", written=-1)
    measured = cost(attack, deployment, harmless, most_seconds=0.0)

    assert _names(measured) == {"create took", "livez took", "written"}


def _names(measured: Cost) -> set[str]:
    return {wrong.rstrip(" 0123456789MBs") for wrong in measured.wrong}
