"""The rows of the fine-tuning demo and benchmark, and how the demo judges what came of them."""

import json
from pathlib import Path

import pytest

from bench import demo_finetune, finetune, generation, tuning
from bench.tuning import Trained
from cli.demo.corpus import Docstring
from jobs.fleet.models_file import Registry

PARSE = Docstring("ast.parse", "Parse the source into an AST node.\nEquivalent to compile(source, …).")


def test_rows_are_the_same_each_time_and_leave_the_held_out_docstrings_out() -> None:
    lines, held_out = tuning.rows(160, 20)
    again, _ = tuning.rows(160, 20)

    assert lines == again
    assert (len(lines), len(held_out)) == (160, 20)
    trained = json.dumps(lines)
    assert not any(json.dumps(tuning.question(docstring)[-1]) in trained for docstring in held_out)
    assert all(tuning.has_format(line["messages"][-1]["content"]) for line in lines)


def test_more_rows_than_docstrings_are_refused() -> None:
    with pytest.raises(ValueError, match="has only"):
        tuning.rows(100_000, 20)


def test_entry_has_three_lines_and_the_first_sentence() -> None:
    assert tuning.entry(PARSE) == "@entry ast.parse\n@module ast\n@about Parse the source into an AST node."
    assert "@" not in tuning.question(PARSE)[-1]["content"]


@pytest.mark.parametrize(
    ("text", "has_format", "names_object"),
    [
        (tuning.entry(PARSE), True, True),
        (f"\n{tuning.entry(PARSE)}\n", True, True),
        ("@entry ast.walk\n@module ast\n@about Walk.", True, False),
        (f"Here it is:\n{tuning.entry(PARSE)}", False, False),
        (f"{tuning.entry(PARSE)}\nAnd more.", False, False),
        ("@entry ast.parse\n@module ast\n@about ", False, False),
        ("ast.parse parses the source.", False, False),
    ],
)
def test_only_an_entry_alone_has_the_format(text: str, *, has_format: bool, names_object: bool) -> None:
    assert (tuning.has_format(text), tuning.names_object(text, PARSE)) == (has_format, names_object)


def test_demo_is_complete_only_if_the_tuned_model_alone_shows_the_format() -> None:
    assert demo_finetune.faults(0.8, 0.1) == []
    assert len(demo_finetune.faults(0.75, 0.1)) == 1
    assert len(demo_finetune.faults(0.8, 0.15)) == 1
    assert len(demo_finetune.faults(0.0, 1.0)) == 2


def test_table_of_stages_has_a_column_for_each_run() -> None:
    run = Trained(examining=5.0, starting=20.0, training=39.0, ending=8.0, steps=40, losses=(3.0, 1.0), peak=10**9)

    table = demo_finetune.stages({"Nightmill": run, "plain trl": run})

    assert [column.header for column in table.columns][1:] == ["Nightmill", "plain trl"]
    assert (run.total, run.steps_per_second) == (72.0, 1.0)
    assert list(table.columns[1].cells)[4:] == ["72", "1.00", "3.00 1.00", "1000"]


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
