"""The request that takes over an eval, made of the object as OpenAI's SDK dumps it."""

import pytest
from openai._models import construct_type
from openai.types import EvalRetrieveResponse

from cli.client.eval_import import eval_body

ID = "String check-a2486074-d803-4445-b431-ad2262e85d47"
CHECK = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "{{item.label}}", "operation": "eq"}
ITEM = {"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}
SHOWN = {
    "object": "eval",
    "id": "eval_67abd54d9b0081909a86353f6fb9317a",
    "data_source_config": {
        "type": "custom",
        "schema": {"type": "object", "properties": {"item": ITEM, "sample": {"type": "object"}}},
    },
    "testing_criteria": [{**CHECK, "name": "String check", "id": ID}],
    "name": "External Data Eval",
    "created_at": 1739314509,
    "metadata": {},
}


@pytest.mark.parametrize("by_alias", [False, True])
def test_eval_is_read_by_either_name_of_its_schema(by_alias: bool) -> None:
    saved = construct_type(type_=EvalRetrieveResponse, value=SHOWN).model_dump(by_alias=by_alias)  # type: ignore[attr-defined]

    assert eval_body(saved) == {
        "imported_from": SHOWN["id"],
        "name": "External Data Eval",
        "data_source_config": {"type": "custom", "item_schema": ITEM, "include_sample_schema": True},
        "testing_criteria": [{**CHECK, "name": "String check", "id": ID}],
    }
