"""Evals of tests, and runs of results: tests whose assertions have the same graders are the items of one eval.

Test ── assertions ──▶ GradedTest: criteria, item ── same criteria ──▶ eval with rows
result of a test ── its components ──▶ a result of each criterion ──▶ output item of a run
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cli.migrate.promptfoo.assertions import Assertion, Fields, Term, model_of
from cli.migrate.promptfoo.config import ConfigPrompt, Test, digest, read_prompt, result_test
from cli.migrate.promptfoo.criteria import criterion, mean_of, term_of
from cli.migrate.promptfoo.files import SCRIPTS, ConfigFolder, NoCounterpart, Object, entries_of
from cli.migrate.promptfoo.templates import PathTemplate, item_path

#: Evals that the tests of a config become, and criteria of an eval.
MAX_EVALS: Final = 100
_MAX_CRITERIA: Final = 50
_MAX_NAME: Final = 255
_ERROR: Final = 2  # Promptfoo's word for a test that was not graded

Remark = Callable[[str, str, bool], None]
#: Where the grade of a criterion is: () for that of the test, else the number of an assertion, and of one in its set.
Place = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GradedTest:
    """A test as an item with criteria, each with the position of its grade in the `result`, where there is one.

    `literals` are the fields of the item that hold values of the assertions, but for those that code reads.
    """

    test: Test
    criteria: tuple[Object, ...]
    places: tuple[Place, ...]
    item: Object
    literals: frozenset[str]
    result: Object = field(default_factory=dict)


class TestGrader:
    """Give tests the criteria of their assertions. The prompts are those that the answers come from."""

    __test__ = False

    def __init__(self, prompts: Sequence[ConfigPrompt], folder: ConfigFolder, remark: Remark) -> None:
        self._question = prompts[0].question() if len(prompts) == 1 else ""
        self._names = {name for prompt in prompts for name in prompt.names}
        self._folder, self._remark = folder, remark

    def grade(self, test: Test) -> GradedTest | None:
        """Return the test with its criteria; None where it has none, which a remark says."""
        fields = Fields(set(test.variables) | self._names)
        criteria: dict[Place, Object] = {}
        named, used = Counter[str](), set(self._names)
        for position, entry in _parts(test):
            kind = str(entry.get("type")) if isinstance(entry, dict) else "assertion"
            try:
                term, weight = self._term(entry, test, fields, is_summed=False), _weight(entry)
                if weight not in (0, 1):
                    self._remark(kind, "its weight has no effect: an item has no mean score without a threshold", False)
                name = _plain(entry.get("metric")) or kind
                named[name] += 1
                made = criterion(f"{name} {named[name]}" if named[name] > 1 else name, term, never_fails=not weight)
                used |= _fields_of(made)
                criteria[position] = made
            except NoCounterpart as error:
                self._remark(kind, str(error), True)
        if not 0 < len(criteria) <= _MAX_CRITERIA:
            self._remark(
                f"test {test.number + 1}", f"it has none of 1 to {_MAX_CRITERIA} assertions that come over", True
            )
            return None
        item = {**dict.fromkeys(sorted(used - fields.values.keys()), ""), **test.variables, **fields.values}
        literals = frozenset(fields.values.keys() - fields.forced)
        return GradedTest(test, tuple(criteria.values()), tuple(criteria), item, literals)

    def _term(self, entry: Any, test: Test, fields: Fields, *, is_summed: bool) -> Term:
        """Return the term of an assertion, or the mean of those of a set. Raises: NoCounterpart."""
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise NoCounterpart("it has no type")
        if entry["type"] != "assert-set":
            assertion = Assertion(
                entry, entry["type"], test.variables, test.options, self._question, fields, self._folder, self._remark,
                is_summed or not _weight(entry),
            )  # fmt: skip
            return term_of(assertion)
        terms, weights = [], []
        for part in entries_of(entry.get("assert")):
            if weight := _weight(part):
                try:
                    terms.append(self._term(part, test, fields, is_summed=True))
                except NoCounterpart as error:
                    kind = part.get("type") if isinstance(part, dict) else "assertion"
                    raise NoCounterpart(f"{kind}: {error}; so the mean has no value either") from error
                weights.append(weight)
        return mean_of(terms, weights, entry.get("threshold"))


def _parts(test: Test) -> Iterator[tuple[Place, Any]]:
    """Yield what becomes a criterion with its position: an assertion, or a set with a threshold.

    A test with a threshold is one set. Without one, all assertions of a set have to pass.
    """
    if test.threshold is not None:
        yield (), {"type": "assert-set", "metric": "assertions", "assert": test.assertions, "threshold": test.threshold}
        return
    for number, entry in enumerate(test.assertions):
        is_set = isinstance(entry, dict) and entry.get("type") == "assert-set" and entry.get("threshold") is None
        if is_set:
            yield from (((number, position), part) for position, part in enumerate(entries_of(entry.get("assert"))))
        else:
            yield (number,), entry


def _weight(entry: Any) -> float:
    """Return the weight of an assertion: 0 for one that never fails a test. Raises: NoCounterpart."""
    weight = (0 if entry.get("metricOnly") is True else entry.get("weight", 1)) if isinstance(entry, dict) else 1
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise NoCounterpart("its weight is not a number from 0 on")
    return weight


def _plain(metric: Any) -> str | None:
    return metric if isinstance(metric, str) and metric.strip() and "{{" not in metric else None


def _fields_of(made: Object) -> set[str]:
    """Return the fields of the item that a criterion names, once the server would take it. Raises: NoCounterpart."""
    from pydantic import ValidationError

    from jobs.evals.graders import parse_grader, references_of

    try:
        references = references_of(parse_grader(made))
    except ValidationError as error:
        raise NoCounterpart(f"its grader is refused: {error.errors()[0]['msg']}"[:300]) from error
    return {str(reference.steps[0]) for reference in references if reference.namespace == "item" and reference.steps}


# ── evals ──


def evals_of(name: str, tests: Sequence[GradedTest], remark: Remark) -> Iterator[tuple[Object, list[GradedTest]]]:
    """Yield an eval for each list of criteria, with its tests. A value that all of them have stands in the criteria."""
    groups = defaultdict[str, list[GradedTest]](list)
    for test in tests:
        groups[json.dumps(test.criteria, sort_keys=True)].append(test)
    for number, group in enumerate(groups.values()):
        if number == MAX_EVALS:
            remark(
                "tests", f"they have more than {MAX_EVALS} different lists of assertions: the others are left out", True
            )
            return
        criteria, shared = _inline(group)
        names = ", ".join(made["name"] for made in criteria)
        eval_id = f"promptfoo-{digest(name, criteria)}"
        rows = [
            replace(test, item={key: value for key, value in test.item.items() if key not in shared}) for test in group
        ]
        fields = sorted({field for row in rows for field in row.item})
        item = {"type": "object", "properties": {field: {} for field in fields}}
        yield (
            {
                "id": eval_id,
                "object": "eval",
                "name": (f"{name}: {names}" if len(groups) > 1 else name)[:_MAX_NAME],
                "data_source_config": {"type": "custom", "schema": _row_schema(item)},
                "testing_criteria": criteria,
                "metadata": {"origin": "promptfoo"},
            },
            rows,
        )


def _row_schema(item: Object) -> Object:
    return {
        "type": "object",
        "properties": {"item": item, "sample": {"type": "object"}},
        "required": ["item", "sample"],
    }


def _inline(group: Sequence[GradedTest]) -> tuple[list[Object], set[str]]:
    """Return the criteria with the values that all tests share, and the fields that they replace."""
    first = group[0]
    shared = {name for name in first.literals if all(test.item[name] == first.item[name] for test in group)}
    texts: dict[str, str] = {}
    for name in shared:
        value = first.item[name]
        parts = enumerate(value) if isinstance(value, list) else ()
        texts |= (
            {item_path([name]): value}
            if isinstance(value, str)
            else {item_path([name, at]): part for at, part in parts}
        )
    return [_replace_texts(made, texts) for made in first.criteria], shared


def _replace_texts(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            name: entry if name in ("source", "schema") else _replace_texts(entry, texts)
            for name, entry in value.items()
        }
    if isinstance(value, list):
        return [_replace_texts(entry, texts) for entry in value]
    if isinstance(value, str):
        for placeholder, text in texts.items():
            value = value.replace(placeholder, text)
    return value


# ── results ──


@dataclass(frozen=True, slots=True)
class ResultsFile:
    """The results of a file: of version 3 and above a list, of earlier ones a table, which is read as such a list.

    `prompts` has the templates of prompts by their labels.
    """

    origin: str
    created_at: int
    config: Object
    prompts: Mapping[str, Any]
    results: list[Object]

    @classmethod
    def parse(cls, value: Any) -> "ResultsFile":
        """Return the results in what a file holds. Raises: NoCounterpart."""
        whole: Object = {"results": value} if isinstance(value, list) else value
        inner = whole.get("results")
        summary = inner if isinstance(inner, dict) else whole
        table = summary.get("table") or whole.get("table")
        heads = table.get("head") if isinstance(table, dict) else summary
        rows = _table_results(table) if isinstance(table, dict) else summary.get("results")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise NoCounterpart("it has no list of results")
        config, metadata = whole.get("config"), whole.get("metadata")
        written = (metadata or {}).get("evaluationCreatedAt") or summary.get("timestamp") or whole.get("createdAt")
        origin = whole.get("evalId") or whole.get("id") or f"results-{digest(rows)}"
        listed = entries_of(heads.get("prompts") if isinstance(heads, dict) else None)
        prompts = {_label({"prompt": head}): head.get("raw") for head in listed if isinstance(head, dict)}
        config = config if isinstance(config, dict) else {}
        return cls(str(origin)[:200].replace("/", "_"), _seconds(written), config, prompts, rows)


def _table_results(table: Object) -> list[Object]:
    """Return the cells of a table as results. Raises: NoCounterpart."""
    try:
        heads, names = table["head"]["prompts"], table["head"].get("vars") or []
        return [
            {
                "testIdx": number,
                "testCase": row.get("test") or {},
                "vars": dict(zip(names, row.get("vars") or [], strict=False)),
                "prompt": {"raw": cell.get("prompt"), "label": _label({"prompt": head})},
                "provider": cell.get("provider") or head.get("provider"),
                "response": {"output": cell.get("text"), "tokenUsage": cell.get("tokenUsage")},
                "success": cell.get("pass"),
                "gradingResult": cell.get("gradingResult"),
            }
            for number, row in enumerate(table["body"])
            for head, cell in zip(heads, row["outputs"], strict=False)
        ]
    except (LookupError, TypeError, AttributeError) as error:
        raise NoCounterpart("its table is broken") from error


def results_bundles(file: ResultsFile, name: str, folder: ConfigFolder, remark: Remark) -> Iterator[Object]:
    """Yield the evals of the tests in a file of results, with a run for each prompt and model."""
    prompts = {label: _prompt_of(label, raw) for label, raw in file.prompts.items()}
    grader = TestGrader([prompt for prompt in prompts.values() if prompt], folder, remark)
    graded = [
        made
        for number, row in enumerate(file.results)
        if (made := _grade_result(row, number, grader, folder, remark)) is not None
    ]
    for saved, tests in evals_of(name, graded, remark):
        runs = defaultdict[tuple[str, str], list[GradedTest]](list)
        for test in tests:
            runs[(_label(test.result), _provider_name(test.result))].append(test)
        yield {
            "eval": saved | {"created_at": file.created_at},
            "rows": list({json.dumps(test.item, sort_keys=True): test.item for test in tests}.values()),
            "runs": [
                _run(file, saved["id"], key, prompts.get(key[0]), answered, remark) for key, answered in runs.items()
            ],
        }


def _prompt_of(label: str, raw: Any) -> ConfigPrompt | None:
    """Return the prompt of a template; None where a program made it, or it has no counterpart."""
    try:
        return None if Path(label.partition(":")[0]).suffix in SCRIPTS else read_prompt(raw, label)
    except NoCounterpart:
        return None


def _grade_result(
    result: Object, number: int, grader: TestGrader, folder: ConfigFolder, remark: Remark
) -> GradedTest | None:
    """Return a result with its criteria; None where none of its assertions comes over."""
    case, index = result.get("testCase"), result.get("testIdx")
    try:
        if not isinstance(case, dict):
            raise NoCounterpart("it does not say which assertions it had")
        index = index if isinstance(index, int) and index >= 0 else number
        made = grader.grade(result_test(case, index, result.get("vars"), folder))
    except NoCounterpart as error:
        remark("result", str(error), True)
        return None
    return made and replace(made, result=result)


def _run(
    file: ResultsFile,
    eval_id: str,
    key: tuple[str, str],
    prompt: ConfigPrompt | None,
    tests: list[GradedTest],
    remark: Remark,
) -> Object:
    """Return a run with its output items."""
    label, provider = key
    try:
        model = model_of(provider)
    except NoCounterpart:
        model = provider[:_MAX_NAME]
    run_id = f"run-{digest(file.origin, eval_id, key)}"
    source: Object = {"type": "jsonl", "source": {"type": "file_content", "content": []}}
    if prompt is not None:
        messages = {"type": "template", "template": prompt.messages_with(PathTemplate.to_item)}
        source |= {"type": "completions", "model": model, "input_messages": messages}
    run = {
        "id": run_id,
        "object": "eval.run",
        "eval_id": eval_id,
        "created_at": file.created_at,
        "status": "completed",
        "name": f"{provider}: {label}"[:_MAX_NAME],
        "model": model,
        "data_source": source,
        "metadata": {"origin": "promptfoo", "promptfoo_eval_id": file.origin},
    }
    items = [_output_item(test, model) | {"eval_id": eval_id, "run_id": run_id} for test in tests]
    changed = sum(
        test.result.get("success") is False and item["status"] == "pass"
        for test, item in zip(tests, items, strict=True)
    )
    if changed:
        remark("results", f"{changed} that failed by assertions which do not come over alone pass here", False)
    return {"run": run, "output_items": items}


def _output_item(test: GradedTest, model: str) -> Object:
    """Return the output item of a result: an error where Promptfoo has not graded it."""
    result = test.result
    components = _components(result.get("gradingResult"), test.test.assertions)
    results = [
        _criterion_result(made, _at(components, position))
        for made, position in zip(test.criteria, test.places, strict=True)
    ]
    is_graded = result.get("failureReason") != _ERROR and all(row is not None for row in results)
    passed = all(row is not None and row["passed"] for row in results)
    return {
        "object": "eval.run.output_item",
        "datasource_item_id": test.test.number,
        "datasource_item": test.item,
        "status": ("pass" if passed else "fail") if is_graded else "error",
        "results": [row for row in results if row is not None] if is_graded else [],
        "sample": _sample(result, model),
    }


def _components(grading: Any, assertions: Sequence[Any]) -> dict[Place, Object]:
    """Return the grades of a test by their places: Promptfoo lists those of a set behind it."""
    if not isinstance(grading, dict):
        return {}
    places: dict[Place, Object] = {(): grading}
    listed, position = grading.get("componentResults") or [], 0
    for number, assertion in enumerate(assertions):
        kind = assertion.get("type") if isinstance(assertion, dict) else None
        entry = listed[position] if position < len(listed) else None
        if kind in _COMPARING or not isinstance(entry, dict):
            continue  # those that compare answers stand at the end
        shown = entry.get("assertion")
        if isinstance(shown, dict) and kind != "assert-set" and shown.get("type") != kind:
            return {(): grading}
        inner = [part for part in entry.get("componentResults") or [] if isinstance(part, dict)]
        places |= {(number,): entry} | {(number, at): part for at, part in enumerate(inner)}
        position += 1 + len(inner)
    return places


_COMPARING: Final = ("select-best", "max-score")


def _at(components: Mapping[Place, Object], position: Place) -> Object | None:
    """Return the grade at a position, if it is one."""
    grade = components.get(position)
    score = grade and grade.get("score")
    is_grade = grade is not None and isinstance(grade.get("pass"), bool) and isinstance(score, int | float)
    return grade if is_grade else None


def _criterion_result(made: Object, grade: Object | None) -> Object | None:
    if grade is None:
        return None
    reason = grade.get("reason")
    sample = {"sample": {"reason": reason[:_MAX_REASON]}} if isinstance(reason, str) and reason else {}
    return {"name": made["name"], "type": made["type"], "score": grade["score"], "passed": grade["pass"]} | sample


_MAX_REASON: Final = 4000


def _sample(result: Object, model: str) -> Object:
    """Return the sample of a result: its messages, its answer, and its tokens."""
    response = result.get("response")
    response = response if isinstance(response, dict) else {}
    output, error = response.get("output"), result.get("error") or response.get("error")
    text = output if isinstance(output, str) else "" if output is None else json.dumps(output, ensure_ascii=False)
    sample: Object = {
        "input": _messages_of(result.get("prompt")),
        "output": [{"role": "assistant", "content": text}],
        "finish_reason": response.get("finishReason") if isinstance(response.get("finishReason"), str) else "stop",
        "model": model,
    }
    usage = response.get("tokenUsage")
    if isinstance(usage, dict):
        counts = {name: value if isinstance(value := usage.get(key), int) else 0 for name, key in _USAGE.items()}
        sample["usage"] = counts
    if result.get("failureReason") == _ERROR and error:
        sample["error"] = {"code": "provider_error", "message": str(error)[:_MAX_REASON]}
    return sample


_USAGE: Final = {
    "total_tokens": "total", "prompt_tokens": "prompt", "completion_tokens": "completion", "cached_tokens": "cached",
}  # fmt: skip


def _messages_of(prompt: Any) -> list[Object]:
    """Return the messages that a model was asked: the prompt of a result is filled already."""
    raw = prompt.get("raw") if isinstance(prompt, dict) else prompt
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False)
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError):
        messages = None
    is_chat = isinstance(messages, list) and all(
        isinstance(row, dict) and {"role", "content"} <= row.keys() for row in messages
    )
    return messages if messages and is_chat else [{"role": "user", "content": text}]


def _label(result: Object) -> str:
    """Return what tells the prompt of a result from the others."""
    prompt = result.get("prompt")
    label = prompt.get("label") or prompt.get("raw") if isinstance(prompt, dict) else prompt
    return str(label)[:_MAX_NAME]


def _provider_name(result: Object) -> str:
    provider = result.get("provider")
    return str(provider.get("id") or provider.get("label") if isinstance(provider, dict) else provider)[:_MAX_NAME]


def _seconds(written: Any) -> int:
    """Return a time as seconds since 1970: ISO 8601, or milliseconds; 0 for anything else."""
    if isinstance(written, int | float) and not isinstance(written, bool) and 0 <= written < 1e15:
        return int(written / 1000)
    try:
        return int(datetime.fromisoformat(written).replace(tzinfo=UTC).timestamp())
    except (TypeError, ValueError, OverflowError):
        return 0
