"""The lines of runs that were made elsewhere: each is an output item, which is checked and keeps its grades.

What is read may be of another server, or written by hand: a line has the types that clients rely on, and one result of
each criterion, or the run is rejected with the number of the line.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import msgspec

from jobs.batches import lines
from jobs.batches.lines import Bad, InputLine
from jobs.errors import NotFound
from jobs.evals.graders.base import MAX_SCORE
from workers.evals.item_sources import CaseRow, ItemSource, RunCase, is_deep

_Object = dict[str, Any]
_ERRORED: Final = ("error", "errored")
_STATUSES: Final = ("pass", "passed", "fail", "failed", *_ERRORED)
#: The error of a result that an errored item lacks.
_MISSING: Final = {"code": "other_error", "message": "The item was imported without a result of this criterion."}


class _Error(msgspec.Struct):
    code: str = "other_error"
    message: str = ""


class _Result(msgspec.Struct, omit_defaults=True):
    name: str
    passed: bool
    type: str | None = None
    score: float | None = None
    sample: _Object | None = None
    sub_results: dict[str, _Object] | None = None
    error: _Error | None = None


class _Sample(msgspec.Struct):
    """The fields of a sample that clients read; others are dropped."""

    input: list[_Object] | None = None
    output: list[_Object] | None = None
    finish_reason: str | None = None
    model: str | None = None
    usage: _Object | None = None
    error: _Object | None = None
    temperature: float | None = None
    max_completion_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None


class _OutputItem(msgspec.Struct):
    datasource_item_id: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    datasource_item: _Object
    status: str
    results: list[_Result]
    sample: _Sample | None = None


_decode = msgspec.json.Decoder(_OutputItem).decode


class ImportedRun(ItemSource):
    """The output items of a run that was made elsewhere: its criteria are graded already."""

    def cases(self) -> Iterator[RunCase | Bad]:
        names = [definition["name"] for definition in self.payload.criteria]
        try:
            with self.context.storage.reader(self.payload.items) as handle:
                for text in lines.read(handle):
                    row = _row(text, names)
                    yield row if isinstance(row, Bad) else RunCase(row, text.number)
        except NotFound:
            yield Bad("invalid_request", "The items of the run are gone.", None, "file_id")


def _row(text: InputLine, names: Sequence[str]) -> CaseRow | Bad:
    if text.raw is None:
        return Bad("line_too_long", "This line is too long.", text.number)
    try:
        item = _decode(text.raw)
        if is_deep(text.raw):
            raise ValueError("it is nested too deeply")
        if not all(-MAX_SCORE <= (result.score or 0) <= MAX_SCORE for result in item.results):  # NaN is none either
            raise ValueError(f"a score is not between -{MAX_SCORE:g} and {MAX_SCORE:g}")
        if item.status not in _STATUSES:
            raise ValueError(f"its status is none of {', '.join(_STATUSES)}")
        results = _by_criterion(item, names)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:  # msgspec's errors are ValueErrors
        return Bad("invalid_item", f"This line is not an output item: {error}", text.number)
    sample = item.sample or _Sample()
    sample_shown = msgspec.to_builtins(sample) | {"input": sample.input or [], "output": sample.output or []}
    return CaseRow(item.datasource_item_id, item.datasource_item, shown=sample_shown, results=results)


def _by_criterion(item: _OutputItem, names: Sequence[str]) -> list[_Object]:
    """Return the result of each criterion in its order. Raises ValueError."""
    by_name = defaultdict[str | None, list[_Result]](list)
    for result in item.results:
        by_name[_criterion_of(result.name, names)].append(result)
    results = []
    for name in names:
        matching = by_name[name]
        if len(matching) == 1:
            results.append({"name": name, "score": None} | msgspec.to_builtins(matching[0]) | {"name": name})
        elif not matching and item.status in _ERRORED:
            results.append({"name": name, "score": None, "passed": False, "error": _MISSING})
        else:
            raise ValueError(f"it has {len(matching)} results of the criterion {name!r}")
    if item.status in _ERRORED and results and not any("error" in result for result in results):
        results[0]["error"] = _MISSING
    return results


def _criterion_of(result_name: str, names: Sequence[str]) -> str | None:
    """Return the criterion of a result, which has its name, or that name, a hyphen and a UUID, as OpenAI's have.

    Of two names that fit, such as `tone` and `tone-de`, the longer one is meant.
    """
    fitting = [name for name in names if result_name == name or result_name.startswith(f"{name}-")]
    return max(fitting, key=len, default=None)
