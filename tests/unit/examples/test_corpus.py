"""The texts of the examples are the standard library's, and those that a model is judged by are held out."""

import json
from typing import Any

import pytest

from examples import corpus


@pytest.mark.verify
def test_docstrings_are_many_and_each_of_its_own() -> None:
    found = corpus.docstrings(600)

    assert len({one.name for one in found}) == 600
    assert {"csv.Sniffer", "statistics.mean"} <= {one.name for one in found}
    assert corpus.docstrings(600) == found


def test_evaluation_items_are_disjoint_and_cover_all_kinds(example: Any) -> None:
    evaluation = example("evaluation")
    items = evaluation.items(48)

    assert len({item["name"] for item in items}) == 48
    assert {item["kind"] for item in items} == {"module", "class", "function"}
    prompts = json.dumps([evaluation.INSTRUCTED, evaluation.TRAINED])
    assert not any(item["summary"] in prompts or item["summary"] in item["details"] for item in items)
    assert not {item["name"] for item in items} & {one.name for one in corpus.docstrings(evaluation.USED)}


def test_fine_tuning_is_complete_only_if_the_tuned_model_alone_shows_the_format(example: Any) -> None:
    faults = example("fine_tuning").faults

    assert list(faults(0.8, 0.1)) == []
    assert len(list(faults(0.75, 0.1))) == 1
    assert len(list(faults(0.8, 0.15))) == 1
    assert len(list(faults(0.0, 1.0))) == 2
