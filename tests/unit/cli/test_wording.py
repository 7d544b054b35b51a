"""The words for kinds of jobs are the same in the command and in the console, and every kind has some."""

import jobs.known_kinds  # noqa: F401 (fills the table of kinds)
from cli.wording import KINDS, kind_of, name_kind
from jobs.ledger import kinds


def test_every_kind_has_the_words_of_the_console() -> None:
    assert {row.name: row.label[0].lower() + row.label[1:] for row in kinds.rows().values()} == KINDS


def test_unknown_kind_is_named_as_it_is() -> None:
    assert [name_kind(kind) for kind in ("generation", "new")] == ["batch", "new"]


def test_kind_is_meant_by_its_words_or_by_its_name() -> None:
    assert [kind_of(text) for text in ("batch", "fine-tuning", "generation", "other", "")] == [
        "generation", "finetuning", "generation", "other", "",
    ]  # fmt: skip
