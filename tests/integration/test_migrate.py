"""`nightmill migrate openai`: what was saved elsewhere comes over once, is named where it does not, and is not run."""

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

from cli.client.server import Server
from cli.main import app
from jobs.db.engine import Database
from tests.support.background_thread import beside
from tests.support.databases import fresh
from tests.support.eval_client import SAME, SCORE, World, evaluating, items
from tests.support.inline_deployment import MODEL


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


def call(world: World, *words: str, command: tuple[str, ...] = ("migrate", "openai")) -> Result:
    with beside(lambda stop: _tick(world, stop)):
        return CliRunner().invoke(app, [*command, *words, "--url", url_of(world), "--api-key", world.client.api_key])


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

    first, second = call(here, *files, "--apply"), call(here, *files, "--apply")

    assert first.exit_code == second.exit_code == 0, first.output + second.output
    assert "comes over: 1, comes over differently: 1" in first.stdout
    assert "no model judge is served here" in first.stdout
    assert "is here already: 2" in second.stdout
    (copy,) = imported(here)
    assert (copy.status, copy.name, copy.model) == ("completed", run.name, run.model)
    assert (copy.imported_from, copy.data_source.type) == (run.id, "completions")
    assert copy.result_counts == run.result_counts
    assert copy.per_testing_criteria_results == run.per_testing_criteria_results
    assert graded(here, copy) == graded(there, run)
    assert (here.asked, here.steps(copy.id)) == ([], [])
    assert here.client.evals.retrieve(copy.eval_id).metadata == {"team": "a"}
    assert [file.purpose for file in here.client.files.list()] == ["user_data"]  # the report


def test_another_server_is_read_and_its_run_compared(
    worlds: tuple[World, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = worlds
    run = evaluated(there, right=3, wrong=1)
    live = there.run(run.eval_id, items("later"))
    own = evaluated(here, right=4, wrong=0)
    monkeypatch.setenv("THERE", there.client.api_key)
    words = ("--from", url_of(there), "--key-env", "THERE", "--apply", "--json")

    first, second = call(here, *words), call(here, *words)

    outcomes = [{row["origin_id"]: row["outcome"] for row in rows(done)} for done in (first, second)]
    assert outcomes[0] == {run.eval_id: "different", run.id: "same", live.id: "lost"}
    assert outcomes[1] == {run.eval_id: "present", run.id: "present", live.id: "lost"}
    (copy,) = (one for one in imported(here) if one.id != own.id)
    (overall, *_) = rows(call(here, copy.id, own.id, "--json", command=("evals", "compare")))
    assert (overall["items"], overall["better"], overall["worse"]) == (3, 0, 0)
    assert there.client.api_key not in first.output


def test_folder_of_promptfoo_comes_over_once_with_its_losses(worlds: tuple[World, World], tmp_path: Path) -> None:
    _, here = worlds
    folder = tmp_path / "capitals"
    folder.mkdir()
    asserted = [{"type": "icontains", "value": "{{capital}}"}, {"type": "latency", "threshold": 9}]
    config = {
        "description": "Capitals",
        "prompts": ["What is the capital of {{country}}?"],
        "providers": [f"openai:{MODEL}"],
        "tests": "file://tests.csv",
        "defaultTest": {"assert": asserted},
    }
    results = [
        {
            "testIdx": number,
            "testCase": {"assert": asserted, "vars": {"country": country, "capital": capital}},
            "prompt": {"raw": f"What is the capital of {country}?", "label": config["prompts"][0]},
            "provider": {"id": f"openai:{MODEL}"},
            "response": {"output": "Lima"},
            "gradingResult": {"componentResults": [
                {"pass": capital == "Lima", "score": int(capital == "Lima"), "assertion": asserted[0]}]},
        }
        for number, (country, capital) in enumerate((("Peru", "Lima"), ("Chile", "Santiago")))
    ]  # fmt: skip
    (folder / "promptfooconfig.yaml").write_text(json.dumps(config))
    (folder / "tests.csv").write_text("country,capital\nPeru,Lima\nChile,Santiago\n")
    saved_results = {"version": 3, "timestamp": "2026-01-21T22:56:55Z", "prompts": [], "results": results}
    (folder / "results.json").write_text(json.dumps({"evalId": "eval-a", "results": saved_results, "config": config}))

    dry, first, second = (call(here, str(folder), *words) for words in ((), ("--apply",), ("--apply",)))

    assert dry.exit_code == first.exit_code == second.exit_code == 0, dry.output + first.output + second.output
    assert "promptfooconfig.yaml: latency" in " ".join(dry.stdout.split())
    (copy,) = imported(here)
    assert (copy.status, copy.model, copy.result_counts.passed, copy.result_counts.failed) == ("completed", MODEL, 1, 1)
    (row,) = here.client.evals.list()
    assert (row.name, [made.type for made in row.testing_criteria]) == ("Capitals", ["string_check"])
    prompts = here.client.get("/prompts", cast_to=object)
    assert [prompt["name"] for prompt in prompts["data"]] == config["prompts"]
    (file,) = (file for file in here.client.files.list() if file.purpose == "evals")
    lines = here.client.files.content(file.id).text.splitlines()
    assert [json.loads(line)["item"]["capital"] for line in lines] == ["Lima", "Santiago"]
    assert here.asked == []


def rows(done: Result) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def failure(done: Result) -> str:
    """Return the reason of the object that failed."""
    (row,) = [row for line in done.stdout.splitlines() if (row := json.loads(line))["outcome"] == "failed"]
    return str(row["reason"])


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

    done = call(world, broken, "--apply", "--json")

    assert done.exit_code == 1
    reason = failure(done)
    assert words in reason
    assert "Line 2" in reason
    assert imported(world) == []
    assert call(world, write(tmp_path, EVAL, RUN, ITEM), "--apply").exit_code == 0
    assert len(imported(world)) == 1


def test_item_nested_without_end_is_refused(world: World, tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"a": deep}

    done = call(world, write(tmp_path, EVAL, RUN, {**ITEM, "datasource_item": deep}), "--apply", "--json")

    assert "nested too deeply" in failure(done)


def test_words_and_names_of_openai_are_read(world: World, tmp_path: Path) -> None:
    """An errored item may lack results; names of results have a suffix."""
    result = {"name": "same-46d7cc9b", "passed": False, "score": 0.0, "sample": None}
    objects: Sequence[Any] = [
        {**ITEM, "status": "fail", "results": [result]},
        {**ITEM, "datasource_item_id": 1, "status": "error", "results": []},
    ]

    assert call(world, write(tmp_path, EVAL, RUN, *objects), "--apply").exit_code == 0

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

    done = call(world, write(tmp_path, *dumps), "--apply")

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
        world, write(tmp_path, {**EVAL, "testing_criteria": criteria}, RUN, {**ITEM, "results": results}), "--apply"
    )

    assert done.exit_code == 0, done.output
    assert [result.name for result in world.output(imported(world)[0])[0].results] == ["tone", "tone-de"]


EXPORT = Path(__file__).parents[2] / "examples" / "openai_export"
FAR = "eval_68b5c1d2e3f481918a7b"
KNOWN = "smollm2-135m-instruct"
MAPPED = ("--map", f"gpt-4o-mini={KNOWN}")
PROMPT = "pmpt_68a1c2f0e4b88190b3d5"


def test_dry_run_names_each_outcome_and_changes_nothing(world: World, tmp_path: Path) -> None:
    done = call(world, str(EXPORT), *MAPPED, "--report", str(tmp_path))

    assert done.exit_code == 0, done.output
    (report,) = tmp_path.glob("migration-*.json")
    saved = json.loads(report.read_text())
    assert saved["applied"] is False
    assert saved["counts"] == {"same": 3, "different": 4, "lost": 1, "failed": 0, "present": 0}
    reasons = {row["kind"]: row["reason"] for row in saved["rows"]}
    assert reasons["prompt"] == f"gpt-4o-mini becomes {KNOWN}"
    assert reasons["eval_run"] == "its status is failed: only completed runs come over"
    assert f"| eval | {FAR} | comes over |  |  |" in next(tmp_path.glob("migration-*.md")).read_text()
    assert list(world.client.evals.list()) == list(world.client.files.list()) == []


def test_exported_folder_comes_over_and_answers_by_its_old_ids(world: World) -> None:
    done = call(world, str(EXPORT), *MAPPED, "--apply", "--json")

    origins = {row["id"]: row["origin_id"] for row in rows(done) if row["id"]}
    client = world.client
    assert origins[client.evals.retrieve(FAR).id] == FAR
    run = client.evals.runs.retrieve("evalrun_68b5e4f9d0b88191", eval_id=FAR)
    counts = run.result_counts
    assert (counts.passed, counts.failed, run.name) == (6, 0, "with the new instructions")
    assert len(world.output(run)) == 6
    version: Any = client.get(f"/prompts/{PROMPT}/versions/production", cast_to=object)
    assert (version["version"], version["model"]) == ("2", KNOWN)
    assert version["parameters"] == {"temperature": 0.0, "max_output_tokens": 64}
    files = {file.filename: file for file in client.files.list(purpose="evals")}
    assert files.keys() == {"file-6YbqT2hWmN4kRcVx8dPz1s.jsonl", f"{FAR}.rows.jsonl"}
    rows_id = files[f"{FAR}.rows.jsonl"].id
    prompt = {"id": PROMPT, "variables": {"shop": "Fell & Fjord", "question": "{{ item.question }}"}}
    source: Any = {"type": "responses", "model": MODEL, "source": {"type": "file_id", "id": rows_id}}
    source["input_messages"] = {"type": "prompt", "prompt": prompt}
    fresh = world.ended(client.evals.runs.create(FAR, data_source=source))
    assert (fresh.status, fresh.result_counts.total) == ("completed", 6)
    assert "You answer customers of Fell & Fjord, in one or two sentences." in str(world.asked[0].body)
    (stored,) = client.files.list(purpose="user_data")
    report = json.loads(client.files.content(stored.id).text)
    assert (stored.filename[:10], report["object"], report["rows"]) == ("migration-", "migration.report", rows(done))


def everything(world: World) -> list[Any]:
    """Return all that a migration makes, but for its reports."""
    client = world.client
    evals = [(row.id, [run.id for run in client.evals.runs.list(row.id)]) for row in client.evals.list()]
    files = sorted((file.filename, file.purpose) for file in client.files.list() if file.purpose != "user_data")
    prompt: Any = client.get(f"/prompts/{PROMPT}", cast_to=object)
    versions: Any = client.get(f"/prompts/{PROMPT}/versions", cast_to=object)
    labels = (prompt["default_version"], prompt["labels"])
    aliases: Any = client.get("/aliases", cast_to=object)
    assert [(row["id"], row["model"]) for row in aliases["data"]] == [("gpt-4o-mini", KNOWN)]
    return [len(evals), [len(runs) for _, runs in evals], files, labels, [row["hash"] for row in versions["data"]]]


def test_folder_that_is_applied_twice_adds_nothing(world: World) -> None:
    call(world, str(EXPORT), *MAPPED, "--apply")
    before, files = everything(world), len(list(world.client.files.list()))

    second = call(world, str(EXPORT), *MAPPED, "--apply", "--json")

    assert {row["outcome"] for row in rows(second)} == {"present", "lost"}
    assert (everything(world), len(list(world.client.files.list()))) == (before, files)


class Killed(BaseException):
    """The command was killed."""


def is_killed(world: World) -> bool:
    try:
        done = call(world, str(EXPORT), *MAPPED, "--apply")
    except Killed:
        return True
    assert done.exit_code == 0, done.output
    return False


@pytest.mark.verify
@pytest.mark.parametrize("is_sent", [False, True])
def test_migration_that_is_killed_between_any_requests_is_completed(
    world: World, monkeypatch: pytest.MonkeyPatch, is_sent: bool
) -> None:
    """The command ends before or after a request that changes something: the first one, the second one and so on."""
    limit = count = 0

    def deadly(send: Any) -> Any:
        def sending(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count > limit and not is_sent:
                raise Killed
            answer = send(*args, **options)
            if count > limit:
                raise Killed
            return answer

        return sending

    with monkeypatch.context() as patch:
        for name in ("post", "upload", "delete"):
            patch.setattr(Server, name, deadly(getattr(Server, name)))
        kills = 0
        while is_killed(world):
            kills += 1
            limit, count = kills // 2, 0

    assert kills >= 5
    assert everything(world)[:2] == [1, [2]]
    assert everything(world)[3] == ("2", {"production": "2"})
    names = [name for name, _ in everything(world)[2]]
    assert sorted(names) == ["eval_68b5c1d2e3f481918a7b.rows.jsonl", "file-6YbqT2hWmN4kRcVx8dPz1s.jsonl"]
