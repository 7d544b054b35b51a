"""A rolling upgrade on PostgreSQL from the version before: both versions serve side by side, and no request fails.

A short form of the dose `F22-mixed`, which judges no seconds.
"""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.doses.dose import Outcome, row
from tests.chaos.doses.versions import NoOldVersion, mix, old_version
from tests.support.distributed import servers
from tests.support.services import need

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

_SECONDS = 15.0  # of both versions side by side


class Untimed(Outcome):
    """Record figures that a dose bounds: a busy machine is slow."""

    def at_most(self, what: str, found: float, most: float, unit: str = "") -> None:
        self.judge(f"{what} {found:.4g}{unit}")


def test_both_versions_answer_every_request_during_rolling_upgrade(tmp_path: Path) -> None:
    began, outcome = time.monotonic(), Untimed("the version before and this one on one database")
    with ExitStack() as stack:
        try:
            shared = stack.enter_context(servers(tmp_path / "servers", migrated=False))
        except Exception as error:  # noqa: BLE001 (whatever keeps one from starting: it is not here)
            need("one of PostgreSQL, RabbitMQ and S3", error)
        try:
            old = stack.enter_context(old_version(tmp_path))
        except NoOldVersion as error:
            pytest.skip(str(error))
        mix(tmp_path, old, shared, outcome, _SECONDS)

    print(f"\n{row('F22-mixed', outcome, time.monotonic() - began)}")
    assert outcome.violations == []
