"""A server that is missing is said to be missing: skipped on a laptop, failed where nothing may be."""

import pytest

from tests.support.services import need


def test_a_missing_server_skips_on_a_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="PostgreSQL can't be started: no room"):
        need("PostgreSQL", OSError("no room"))


def test_a_missing_server_fails_where_ci_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match="PostgreSQL can't be started: no room"):
        need("PostgreSQL", OSError("no room"))
