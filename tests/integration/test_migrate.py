"""`nightmill evals import`: what one deployment evaluated is compared in another one, and is not run there."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from openai._models import construct_type
from openai.types import EvalRetrieveResponse
from openai.types.evals import RunRetrieveResponse
from openai.types.evals.runs import OutputItemRetrieveResponse
from typer.testing import CliRunner, Result

from cli.main import app
from jobs.db.engine import Database
from tests.support.background_thread import beside
from tests.support.databases import fresh
from tests.support.eval_client import SAME, SCORE, World, evaluating, items


@pytest.fixture
def worlds(db: Database, tmp_path: Path) -> Iterator[tuple[World, World]]:
    """Two deployments, each with a database of its own."""
    folders = tmp_path / "elsewhere", tmp_path / "here"
    for folder in folders:
        folder.mkdir()
    with ExitStack() as stack:
        other = stack.enter_context(fresh("sqlite", folders[0]))
        there, here = (
            stack.enter_context(evaluating(db, folder)) for db, folder in zip((other, db), folders, strict=True)
        )
        yield there, here


def url_of(world: World) -> str:
    return str(world.client.base_url).removesuffix("/v1/")


def call(world: World, *words: str) -> Result:
    with beside(lambda stop: _tick(world, stop)):
        return CliRunner().invoke(app, ["evals", *words, "--url", url_of(world), "--api-key", world.client.api_key])


def _tick(world: World, stop: Any) -> None:
    while not stop.wait(0.01):
        world.inline.dispatcher.tick()


def evaluated(world: World, *, right: int, wrong: int) -> Any:
    """Run some items of two criteria, the last ones without a good answer."""
    content = items(*(f"q{n}" for n in range(right))) + items(*(f"q{right + n}" for n in range(wrong)), right=False)
    return world.ended(world.run(world.eval(SAME, SCORE, metadata={"team": "a"}), content))


def saved(world: World, run: Any, folder: Path) -> list[str]:
    """Save an eval, a run and its items, as a script with the SDK does."""
    client = world.client
    (folder / "eval.json").write_text(client.evals.retrieve(run.eval_id).model_dump_json())
    (folder / "runs.json").write_text(client.evals.runs.list(run.eval_id).model_dump_json())
    with (folder / "items.jsonl").open("w") as out:
        out.writelines(item.model_dump_json() + "\n" for item in world.output(run))
    return [str(folder / name) for name in ("eval.json", "runs.json", "items.jsonl")]


def imported(world: World) -> list[Any]:
    evals = world.client.evals
    return [evals.runs.retrieve(run.id, eval_id=row.id) for row in evals.list() for run in evals.runs.list(row.id)]


def graded(world: World, run: Any) -> list[tuple[Any, ...]]:
    """Return what must be the same wherever a run is."""
    return [
        (item.datasource_item_id, item.datasource_item, item.status, item.to_dict()["results"], item.sample.output)
        for item in world.output(run)
    ]


def test_saved_objects_are_imported_once_and_not_run(worlds: tuple[World, World], tmp_path: Path) -> None:
    there, here = worlds
    run = evaluated(there, right=3, wrong=2)
    files = saved(there, run, tmp_path)

    first, second = call(here, "import", *files), call(here, "import", *files)

    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert "imported" in first.stdout
    assert "is there already" in second.stdout
    (copy,) = imported(here)
    assert (copy.status, copy.name, copy.model) == ("completed", run.name, run.model)
    assert (copy.imported_from, copy.data_source.type) == (run.id, "completions")
    assert copy.result_counts == run.result_counts
    assert copy.per_testing_criteria_results == run.per_testing_criteria_results
    assert graded(here, copy) == graded(there, run)
    assert (here.asked, here.steps(copy.id)) == ([], [])
    assert here.client.evals.retrieve(copy.eval_id).metadata == {"team": "a"}
    assert list(here.client.files.list()) == []


def test_another_server_is_read_and_its_run_compared(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = worlds
    run = evaluated(there, right=3, wrong=1)
    live = there.run(run.eval_id, items("later"))
    own = evaluated(here, right=4, wrong=0)
    monkeypatch.setenv("NIGHTMILL_IMPORT_KEY", there.client.api_key)
    words = ("import", "--from", url_of(there), "--eval", run.eval_id, "--json")

    first, second = call(here, *words), call(here, *words)

    outcomes = [{row["imported_from"]: row["outcome"] for row in rows(done)} for done in (first, second)]
    assert outcomes[0] == {run.id: "imported", live.id: "left out: its status is queued"}
    assert outcomes[1][run.id] == "is there already"
    (copy,) = (one for one in imported(here) if one.id != own.id)
    (overall, *_) = rows(call(here, "compare", copy.id, own.id, "--json"))
    assert (overall["items"], overall["better"], overall["worse"]) == (3, 0, 0)
    assert there.client.api_key not in first.output


def rows(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


ITEM = {
    "id": "outputitem_1",
    "object": "eval.run.output_item",
    "run_id": "evalrun_1",
    "datasource_item_id": 0,
    "datasource_item": {"a": "x"},
    "status": "pass",
    "results": [{"name": "same", "passed": True, "score": 1.0}],
    "sample": {"input": [], "output": [{"role": "assistant", "content": "x"}]},
}
EVAL = {
    "id": "eval_1",
    "object": "eval",
    "name": "e",
    "data_source_config": {"type": "custom", "schema": {"type": "object", "properties": {"item": {"type": "object"}}}},
    "testing_criteria": [{**SAME, "pass_threshold": None}],
}
RUN = {"id": "evalrun_1", "object": "eval.run", "eval_id": "eval_1", "status": "completed", "name": "r", "model": "m"}


@pytest.fixture
def world(db: Database, tmp_path: Path) -> Iterator[World]:
    with evaluating(db, tmp_path) as world:
        yield world


def write(folder: Path, *objects: Any) -> str:
    path = folder / "saved.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in objects))
    return str(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"results": []}, "0 results of the criterion 'same'"),
        ({"results": ITEM["results"] * 2}, "2 results"),
        ({"results": [{"name": "same", "passed": "yes"}]}, "Expected `bool`"),
        ({"results": [{"name": "same", "passed": True, "score": -1e301}]}, "a score is not between"),
        ({"status": "perhaps"}, "its status is none of"),
        ({"datasource_item": [1]}, "Expected `object`"),
        ({"datasource_item_id": -1}, "Expected `int` >= 0"),
        ({"sample": {"output": "x"}}, "Expected `array | null`"),
        ({"sample": {"output": ["x"]}}, "Expected `object`"),
    ],
)
@pytest.mark.first(2)
def test_line_that_is_not_an_output_item_is_named_and_nothing_stays(
    world: World, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    broken = write(tmp_path, EVAL, RUN, ITEM, {**ITEM, **change})

    done = call(world, "import", broken)

    assert done.exit_code == 1
    assert words in str(done.exception)
    assert "Line 2" in str(done.exception)
    assert imported(world) == []
    assert call(world, "import", write(tmp_path, EVAL, RUN, ITEM)).exit_code == 0
    assert len(imported(world)) == 1


def test_item_nested_without_end_is_refused(world: World, tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}

    done = call(world, "import", write(tmp_path, EVAL, RUN, {**ITEM, "datasource_item": deep}))

    assert "nested too deeply" in str(done.exception)


def test_words_and_names_of_openai_are_read(world: World, tmp_path: Path) -> None:
    """An errored item may lack results; names of results have a suffix."""
    result = {"name": "same-46d7cc9b", "passed": False, "score": 0.0, "sample": None}
    objects: Sequence[Any] = [
        {**ITEM, "status": "fail", "results": [result]},
        {**ITEM, "datasource_item_id": 1, "status": "error", "results": []},
    ]

    assert call(world, "import", write(tmp_path, EVAL, RUN, *objects)).exit_code == 0

    (run,) = imported(world)
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (2, 0, 1, 1)
    assert [item.results[0].name for item in world.output(run)] == ["same", "same"]


#: The ids of two criteria with one name, as OpenAI's reference shows them.
IDS = ("String check-a2486074-d803-4445-b431-ad2262e85d47", "String check-c4fdf789-2fa5-407f-8a41-a6f4f9afd482")


def of_openai() -> Iterator[Any]:
    """Yield an eval, a run and an item in the shapes of OpenAI's reference, as its SDK dumps them: with all nulls."""
    schema = {"type": "object", "properties": {"item": {"type": "object"}, "sample": {"type": "object"}}}
    criteria = [{**SAME, "name": "String check", "id": id_} for id_ in IDS]
    config = {"type": "custom", "schema": schema}
    message = {"tool_call_id": None, "tool_calls": None, "function_call": None}
    sample = {
        "input": [{"role": "developer", "content": "Categorize a given news headline.", **message}],
        "output": [{"role": "assistant", "content": "Markets", **message}],
        "finish_reason": "stop",
        "model": "gpt-4o-mini-2024-07-18",
        "usage": {"total_tokens": 325, "completion_tokens": 2, "prompt_tokens": 323, "cached_tokens": 0},
        "error": None,
        "temperature": 1.0,
        "max_completion_tokens": 2048,
        "top_p": 1.0,
        "seed": 42,
    }
    results = [
        {"name": id_, "sample": None, "passed": passed, "score": float(passed)}
        for id_, passed in zip(IDS, (True, False), strict=True)
    ]
    item = {**ITEM, "created_at": 1743092076, "eval_id": "eval_1", "status": "fail", "results": results}
    yield EvalRetrieveResponse, {**EVAL, "created_at": 1, "data_source_config": config, "testing_criteria": criteria}
    yield RunRetrieveResponse, {**RUN, "data_source": {"type": "completions", "model": "gpt-4o-mini"}, "metadata": {}}
    yield OutputItemRetrieveResponse, {**item, "sample": sample}


def test_dumps_of_openai_are_imported(world: World, tmp_path: Path) -> None:
    objects: list[Any] = [construct_type(type_=kind, value=value) for kind, value in of_openai()]
    dumps = [value.model_dump() for value in objects]

    done = call(world, "import", write(tmp_path, *dumps))

    assert done.exit_code == 0, done.output
    (run,) = imported(world)
    assert [(row.testing_criteria, row.passed) for row in run.per_testing_criteria_results] == [
        (IDS[0], 1),
        (IDS[1], 0),
    ]
    (item,) = world.output(run)
    assert [(result.name, result.passed) for result in item.results] == [(IDS[0], True), (IDS[1], False)]
    assert (item.sample.seed, item.sample.usage.prompt_tokens, item.sample.output[0].content) == (42, 323, "Markets")
    config: Any = world.client.evals.retrieve(run.eval_id).data_source_config
    assert config.schema_["required"] == ["item", "sample"]


def test_result_belongs_to_the_longest_name_that_fits(world: World, tmp_path: Path) -> None:
    criteria = [{**SAME, "name": name} for name in ("tone", "tone-de")]
    results = [{"name": name, "passed": True, "score": 1.0} for name in ("tone-de-46d7cc9b", "tone-46d7cc9b")]

    done = call(
        world, "import", write(tmp_path, {**EVAL, "testing_criteria": criteria}, RUN, {**ITEM, "results": results})
    )

    assert done.exit_code == 0, done.output
    assert [result.name for result in world.output(imported(world)[0])[0].results] == ["tone", "tone-de"]


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([RUN], "no eval"),
        ([EVAL, {**RUN, "eval_id": "eval_2"}], "not its eval eval_2"),
        ([EVAL, ITEM], "not the run"),
        ([EVAL, {"object": "batch", "id": "batch_1"}], "something else"),
        ([[1]], "something else"),
        ([{**EVAL, "id": "../x"}], "not an id"),
        ([{**EVAL, "testing_criteria": None}], "is not an eval"),
    ],
)
def test_files_that_are_not_whole_are_refused(world: World, tmp_path: Path, objects: list[Any], words: str) -> None:
    done = call(world, "import", write(tmp_path, *objects))

    assert done.exit_code == 1
    assert words in str(done.exception)
    assert list(world.client.evals.list()) == []
