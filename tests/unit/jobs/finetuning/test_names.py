"""The names of tuned models."""

import pytest

from jobs.errors import InvalidRequest
from jobs.finetuning import names
from jobs.registry.models import is_tuned


def test_a_name_says_base_project_suffix_and_a_part_of_the_job() -> None:
    name = names.model_name("org/Base-1B", "Team Ä 1!", "support", "ftjob-abcdefghijklmnop")

    assert name == "ft:org/Base-1B:team-1:support:abcdefghij"
    assert names.checkpoint_name(name, 20) == f"{name}:ckpt-step-20"
    assert is_tuned(name)
    assert not is_tuned("org/Base-1B")


def test_a_name_without_a_suffix_keeps_its_place_as_openai_does() -> None:
    assert names.model_name("b", "default", None, "ftjob-x1") == "ft:b:default::x1"


def test_project_name_without_letters_gets_default_slug() -> None:
    assert names.slug("!!!") == "project"


def test_a_name_that_no_column_could_hold_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="too long"):
        names.model_name("b" * 200, "default", "s" * 40, "ftjob-x1")
