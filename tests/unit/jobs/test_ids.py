"""Ids look like OpenAI's and do not repeat."""

import re

from jobs.ids import new_id


def test_an_id_is_its_prefix_and_24_characters() -> None:
    assert re.fullmatch(r"batch_[a-z0-9]{24}", new_id("batch_"))


def test_ids_do_not_repeat() -> None:
    assert len({new_id("file-") for _ in range(10_000)}) == 10_000
