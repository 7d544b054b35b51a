"""Read Promptfoo's configs and results as evals with runs, and as prompts.

    promptfooconfig.yaml ── files, config ──▶ prompts, models, tests ── assertions, evals ──▶ prompts, evals with rows
    results.json ─────────────────────────▶ results of tests ───────────────────────────────▶ evals with rows and runs

What does not mean the same here is left out with a reason, and never guessed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cli.migrate.promptfoo.config import Remark, prompt_object, read_prompts, read_providers, read_tests
from cli.migrate.promptfoo.evals import ResultsFile, TestGrader, evals_of, results_bundles
from cli.migrate.promptfoo.files import ConfigFolder, NoCounterpart, Object

_SUFFIXES: Final = frozenset({".yaml", ".yml", ".json", ".jsonl"})
_CASES: Final = frozenset({"tests", "scenarios", "defaultTest"})
#: Parts of a config that change answers or grades, and come over nowhere.
_UNREAD: Final = ("scenarios", "extensions", "derivedMetrics", "nunjucksFilters", "redteam")


@dataclass(frozen=True, slots=True)
class PromptfooReading:
    """The content of a file: bundles of an `eval` with its `rows` and `runs`, and prompts with their `versions`.

    `remarks` are a part of the file, a reason, and whether the part is lost; it comes over differently otherwise.
    `files` are the files that were read for it.
    """

    source: Path
    values: list[Object] = field(default_factory=list)
    remarks: list[tuple[str, str, bool]] = field(default_factory=list)
    files: frozenset[Path] = frozenset()


def is_promptfoo(value: Any) -> bool:
    """Return whether a value of JSON or YAML is a config of Promptfoo, its results, or one of them."""
    if not isinstance(value, dict):
        return False
    if ("providers" in value or "targets" in value) and ("prompts" in value or _CASES & value.keys()):
        return True
    results = value.get("results")
    inner = results if isinstance(results, dict) else value
    if isinstance(inner.get("table"), dict) and "body" in inner["table"]:
        return True
    rows = inner.get("results")
    return _is_result(value) or (isinstance(rows, list) and "timestamp" in inner and all(map(_is_result, rows[:1])))


def _is_result(value: Any) -> bool:
    return isinstance(value, dict) and "testCase" in value and "prompt" in value and "provider" in value


def read(paths: Sequence[Path]) -> Iterator[PromptfooReading]:
    """Yield what each of the files has that is Promptfoo's. A broken file has a remark alone."""
    for path in paths:
        if path.suffix not in _SUFFIXES:
            continue
        folder, remarks = ConfigFolder(path.parent), Counter[tuple[str, str, bool]]()
        values: list[Object] = []

        def remark(what: str, reason: str, is_lost: bool, made: Counter[tuple[str, str, bool]] = remarks) -> None:
            made[what, reason, is_lost] += 1

        try:
            value = folder.load(path.name)
            is_lines = isinstance(value, list) and bool(value) and is_promptfoo(value[0])
            if not is_lines and not is_promptfoo(value):
                continue
            value = folder.follow(value, value)
            is_config = not is_lines and "results" not in value and "table" not in value
            made = (
                _config_values(value, path, folder, remark)
                if is_config
                else _results_values(value, path, folder, remark)
            )
            values += made
        except NoCounterpart as error:
            if path.stem != "promptfooconfig" and not values:
                continue
            remark(path.name, str(error), True)
        listed = [
            (what, f"{reason} ({count} times)" if count > 1 else reason, is_lost)
            for (what, reason, is_lost), count in remarks.items()
        ]
        yield PromptfooReading(path, values, listed, frozenset(folder.files))


def _config_values(config: Object, path: Path, folder: ConfigFolder, remark: Remark) -> Iterator[Object]:
    """Yield the prompts of a config, and its evals with their rows."""
    for name in _UNREAD:
        if config.get(name):
            remark(name, "it has no counterpart here", True)
    prompts, providers = read_prompts(config, folder, remark), read_providers(config, folder, remark)
    if len(providers) > 1:
        remark("prompts", "there are several models: their prompts name none", False)
    tests = read_tests(config, folder, remark)
    for prompt in prompts:
        try:
            yield prompt_object(prompt, providers, tests[0].variables if tests else {})
        except NoCounterpart as error:
            remark(f"prompt {prompt.label}", str(error), True)
    grader = TestGrader(prompts, folder, remark)
    graded = [made for test in tests if (made := grader.grade(test)) is not None]
    for saved, rows in evals_of(_name(config, path), graded, remark):
        yield {"eval": saved, "rows": [row.item for row in rows], "runs": []}


def _results_values(value: Any, path: Path, folder: ConfigFolder, remark: Remark) -> Iterator[Object]:
    """Yield the evals of a file of results with their runs."""
    file = ResultsFile.parse(value)
    yield from results_bundles(file, _name(file.config, path), folder, remark)


def _name(config: Object, path: Path) -> str:
    """Return the name of an eval: what the config says of itself, or the name of its folder."""
    description = config.get("description")
    return (
        description if isinstance(description, str) and description.strip() else path.resolve().parent.name or path.stem
    )
