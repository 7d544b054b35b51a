"""The identity provider: one that is silent is asked seldom."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.errors import Unavailable
from jobs.security import oidc
from jobs.security.oidc import LoginAttempt, Provider
from jobs.settings import Settings


class Silent(Provider):
    """A provider whose answers never come: each attempt takes ten seconds."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__(Settings(oidc_issuer="https://login.example.com", oidc_client_id="nightmill"), 0.0)
        self.clock, self.attempts = clock, 0

    async def _fetch(self, *_: Any) -> dict[str, Any]:
        self.attempts += 1
        self.clock[0] += 10.0
        raise Unavailable


def test_silent_provider_is_asked_by_a_single_waiting_login(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1e6]
    monkeypatch.setattr(oidc, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    provider = Silent(clock)

    async def begin_together() -> list[Any]:
        logins = (provider.begin(LoginAttempt.new()) for _ in range(3))
        return list(await asyncio.gather(*logins, return_exceptions=True))

    assert {type(answer) for answer in asyncio.run(begin_together())} == {Unavailable}
    assert provider.attempts == 1
    clock[0] += 2.0
    asyncio.run(begin_together())
    assert provider.attempts == 2
