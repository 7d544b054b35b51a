"""Links to the console: used once, for a while, by whoever has the token."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.clock import now
from jobs.errors import Unauthenticated
from jobs.security.sign_in import create_token, exchange, links_folder

SECONDS = 900.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "operator.key").write_text("nm_operator\n")
    return tmp_path


def make_older(folder: Path, seconds: float) -> None:
    for path in links_folder(folder).iterdir():
        os.utime(path, (now() - seconds, now() - seconds))


def test_token_is_exchanged_once(folder: Path) -> None:
    token = create_token(folder, SECONDS)

    assert exchange(folder, token, SECONDS) == "nm_operator"
    with pytest.raises(Unauthenticated) as refusal:
        exchange(folder, token, SECONDS)

    assert refusal.value.code == "invalid_sign_in_token"
    assert list(links_folder(folder).iterdir()) == []


def test_concurrent_exchanges_of_token_succeed_once(folder: Path) -> None:
    def attempt(token: str) -> int:
        with suppress(Unauthenticated):
            exchange(folder, token, SECONDS)
            return 1
        return 0

    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            token = create_token(folder, SECONDS)
            assert sum(pool.map(attempt, [token] * 8)) == 1


@pytest.mark.parametrize("token", ["", "x", "../operator.key", "ä\n😀"])
def test_unknown_token_opens_nothing_and_leaves_others_alone(folder: Path, token: str) -> None:
    right = create_token(folder, SECONDS)

    with pytest.raises(Unauthenticated):
        exchange(folder, token, SECONDS)

    assert exchange(folder, right, SECONDS) == "nm_operator"


def test_token_of_a_folder_without_links_is_refused(folder: Path) -> None:
    with pytest.raises(Unauthenticated):
        exchange(folder, "x", SECONDS)


def test_old_token_is_refused_and_removed(folder: Path) -> None:
    token = create_token(folder, SECONDS)
    make_older(folder, SECONDS + 5)

    with pytest.raises(Unauthenticated):
        exchange(folder, token, SECONDS)

    assert list(links_folder(folder).iterdir()) == []


def test_new_token_removes_old_ones_and_keeps_those_that_can_be_used(folder: Path) -> None:
    create_token(folder, SECONDS)
    make_older(folder, SECONDS + 5)
    tokens = [create_token(folder, SECONDS) for _ in range(2)]

    assert len(list(links_folder(folder).iterdir())) == 2
    assert [exchange(folder, token, SECONDS) for token in tokens] == ["nm_operator"] * 2


def test_files_are_private_and_hold_no_token(folder: Path) -> None:
    token = create_token(folder, SECONDS)

    [link] = links_folder(folder).iterdir()
    assert (link.stat().st_mode & 0o777, links_folder(folder).stat().st_mode & 0o777) == (0o600, 0o700)
    assert token not in link.name
    assert link.read_bytes() == b""
