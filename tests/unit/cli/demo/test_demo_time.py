"""What the demo says that it took."""

import time

import pytest

from cli.demo.command import describe_time


def test_time_counts_the_set_up_where_one_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_228.4)

    assert describe_time(141.2, None) == "[bold]141 s[/] for the demo"
    assert describe_time(141.2, 1_000.0) == "[bold]228 s[/] from nothing to here: 87 s of set-up, 141 s of the demo"
    assert describe_time(141.2, 2_000.0).startswith("[bold]141 s[/] from nothing to here: 0 s of set-up")
