"""The rows of the benchmark of fine-tuning, and what counts as an answer in their form."""

import json
from pathlib import Path

import pytest

from bench import finetune, generation, tuning
from examples.corpus import Docstring, docstrings, entry, entry_name, question
from jobs.fleet.models_file import Registry

PARSE = Docstring("ast.parse", "Parse the source into an AST node.\nEquivalent to compile(source, …).")


def test_rows_are_deterministic_and_exclude_evaluation_docstrings() -> None:
    lines = tuning.rows(160)

    assert lines == tuning.rows(160)
    assert len(lines) == 160
    trained = json.dumps(lines)
    assert not any(json.dumps(question(docstring)[-1]) in trained for docstring in docstrings(180)[160:])
    assert all(entry_name(line["messages"][-1]["content"]) for line in lines)


def test_more_rows_than_docstrings_are_refused() -> None:
    with pytest.raises(ValueError, match="has only"):
        tuning.rows(100_000)


def test_entry_has_three_lines_and_the_first_sentence() -> None:
    assert entry(PARSE) == "@entry ast.parse\n@module ast\n@about Parse the source into an AST node."
    assert "@" not in question(PARSE)[-1]["content"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (entry(PARSE), "ast.parse"),
        (f"\n{entry(PARSE)}\n", "ast.parse"),
        ("@entry ast.walk\n@module ast\n@about Walk.", "ast.walk"),
        (f"Here it is:\n{entry(PARSE)}", None),
        (f"{entry(PARSE)}\nAnd more.", None),
        ("@entry ast.parse\n@module ast\n@about ", None),
        ("ast.parse parses the source.", None),
    ],
)
def test_only_an_entry_alone_has_the_format(text: str, name: str | None) -> None:
    assert entry_name(text) == name


def test_quantile_is_a_measured_value() -> None:
    ordered = [float(n) for n in range(1, 41)]

    assert [finetune.quantile(ordered, share) for share in (0.5, 0.95)] == [20.0, 38.0]
    assert finetune.quantile([3.0], 0.95) == 3.0


def test_models_file_without_lora_differs_in_nothing_else(tmp_path: Path) -> None:
    with_lora = Registry.read(generation.PACKAGED_FILE).models[tuning.BASE]

    without = Registry.read(generation.without_lora(tmp_path / "models.yaml")).models[tuning.BASE]

    removed = {name: value for name, value in with_lora.engine_args.items() if "lora" in name}
    assert removed
    assert without.engine_args | removed == with_lora.engine_args
