"""Graders and data sources of evaluations that are none, too much, or another project's."""

from collections.abc import Iterator
from typing import Any

from tests.badinputs.case import Case
from tests.badinputs.world import World, said

AREA = "Evaluations"
CHECK = {"type": "string_check", "name": "n", "input": "a", "operation": "eq", "reference": "a"}
TEXT = "{{ sample.output_text }}"
FAITHFUL = {"type": "faithfulness", "name": "n", "input": TEXT, "context": "{{ item.contexts }}"}
RANKING = {
    "type": "ranking", "name": "n", "input": "{{ item.files }}", "reference": "{{ item.relevant }}",
    "evaluation_metric": "map", "k": 10,
}  # fmt: skip
PERPLEXITY = {"type": "perplexity", "name": "n", "max_perplexity": 20}
SOURCE = {"type": "file_content", "content": [{"item": {"query": "q", "text": "t"}}]}
RETRIEVAL = {"type": "retrieval", "source": SOURCE, "vector_store_id": "vs_x"}
DEEP: dict[str, Any] = {"type": "eq", "key": "a", "value": 1}
for _ in range(25):
    DEEP = {"type": "and", "filters": [DEEP]}

GRADERS: dict[str, tuple[dict[str, Any], str]] = {
    "faithfulness with parameters and no judge": ({**FAITHFUL, "sampling_params": {"seed": 1}}, "invalid_value"),
    "contexts as a list": ({**FAITHFUL, "context": ["a"]}, "invalid_type"),
    "a sample's field that none has": ({**FAITHFUL, "input": "{{ sample.__class__ }}"}, "invalid_value"),
    "a template of 1 MB": ({**FAITHFUL, "context": "x" * (1 << 20)}, "string_above_max_length"),
    "a relevance without a judge": (
        {"type": "answer_relevance", "name": "n", "question": "q", "input": TEXT},
        "missing_required_parameter",
    ),
    "a recall of nothing": (
        {"type": "context_recall", "name": "n", "context": "c", "model": "m"},
        "missing_required_parameter",
    ),
    "a precision with a threshold that is a text": (
        {"type": "context_precision", "name": "n", "question": "q", "context": "c", "reference": "r", "model": "m"}
        | {"pass_threshold": "1"},
        "invalid_type",
    ),
    "a ranking of no results": ({**RANKING, "k": 0}, "integer_below_min_value"),
    "a ranking of 10^30 results": ({**RANKING, "k": 10**30}, "integer_above_max_value"),
    "an unknown measure": ({**RANKING, "evaluation_metric": "err"}, "invalid_value"),
    "a perplexity below 1": ({**PERPLEXITY, "max_perplexity": 0.5}, "decimal_below_min_value"),
    "a perplexity without a limit": ({"type": "perplexity", "name": "n"}, "missing_required_parameter"),
}
SOURCES: dict[str, tuple[dict[str, Any], str]] = {
    "a store that is nobody's": (RETRIEVAL, "404 not_found"),
    "no store": ({**RETRIEVAL, "vector_store_id": ""}, "400 string_below_min_length"),
    "51 results": ({**RETRIEVAL, "max_num_results": 51}, "400 integer_above_max_value"),
    "filters 26 deep": ({**RETRIEVAL, "filters": DEEP}, "400 invalid_value"),
    "a query of the sample": ({**RETRIEVAL, "query": "{{ sample.x }}"}, "400 invalid_value"),
    "a ranking without weights": (
        {**RETRIEVAL, "ranking_options": {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}},
        "400 invalid_value",
    ),
    "a perplexity of no model": ({"type": "perplexity", "source": SOURCE}, "400 missing_required_parameter"),
    "a perplexity with samples": (
        {"type": "perplexity", "source": SOURCE, "model": "m", "sampling_params": {"n": 2}},
        "400 unknown_parameter",
    ),
}


def _created(world: World, grader: dict[str, Any]) -> str:
    config = {"type": "custom", "item_schema": {"type": "object"}}
    body = {"data_source_config": config, "testing_criteria": [grader]}
    return said(world.client.post("/v1/evals", json=body))


def _run(world: World, source: dict[str, Any]) -> str:
    return said(world.client.post(f"/v1/evals/{_eval(world)}/runs", json={"data_source": source}))


def _eval(world: World) -> str:
    def create() -> str:
        config = {"type": "custom", "item_schema": {"type": "object"}}
        body = {"data_source_config": config, "testing_criteria": [CHECK]}
        return str(world.client.post("/v1/evals", json=body).json()["id"])

    return world.once("eval", create)


def _of_another_project(world: World) -> str:
    """Search the store of the other project, whose id is not secret."""
    store = world.once("another project's store", lambda: world.stranger.post("/v1/vector_stores", json={}).json())
    return _run(world, {**RETRIEVAL, "vector_store_id": store["id"]})


def cases() -> Iterator[Case]:
    for name, (grader, code) in GRADERS.items():
        yield Case(AREA, name, f"400 {code}", lambda world, grader=grader: _created(world, grader))
    for name, (source, expected) in SOURCES.items():
        yield Case(AREA, name, expected, lambda world, source=source: _run(world, source))
    yield Case(AREA, "another project's store", "404 not_found", _of_another_project)
