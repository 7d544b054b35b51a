"""The child, called in this process, follows references and names what is wrong with a schema."""

from typing import Any

import msgspec
import pytest

from workers.middleware.schema_checker_child import check
from workers.middleware.schema_checker_protocol import CheckRequest, CheckResult, InvalidSchema


def asked(schema: Any, *texts: str) -> CheckResult | InvalidSchema:
    return check(CheckRequest(msgspec.json.encode(schema), list(texts)))


def test_references_are_followed_through_objects_and_lists() -> None:
    schema = {"$defs": {"n": {"type": "integer"}}, "anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/n"}}]}

    assert asked(schema, "[1, 2]", "null", '["a"]') == CheckResult(
        [None, None, "['a'] is not valid under any of the given schemas"]
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "null"}, {"items": {"$ref": "#/$defs/none"}}]},
        {"properties": {"a": {"not": {"$ref": "#/$defs/none"}}}},
    ],
)
def test_dangling_reference_is_reported_before_text_is_checked(schema: Any) -> None:
    assert asked(schema) == InvalidSchema("a $ref leads nowhere: /$defs/none")


def test_property_named_ref_is_no_reference() -> None:
    schema = {"properties": {"$ref": {"type": "string"}}, "required": ["$ref"]}

    assert asked(schema, '{"$ref": "#nowhere"}', '{"$ref": 5}') == CheckResult(
        [None, "$['$ref']: 5 is not of type 'string'"]
    )


def test_below_an_id_references_are_looked_at_with_the_texts_only() -> None:
    schema = {"$id": "urn:example:tree", "$defs": {"leaf": {"$anchor": "leaf", "type": "integer"}}, "$ref": "#leaf"}
    broken = {"$id": "urn:example:tree", "$ref": "#nothing"}

    assert asked(schema, "5", '"five"') == CheckResult([None, "'five' is not of type 'integer'"])
    assert asked(broken) == CheckResult([])
    assert isinstance(asked(broken, "5"), InvalidSchema)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "thing"}, "$.type: 'thing' is not valid under any of the given schemas"),
        ({"properties": []}, "$.properties: [] is not of type 'object'"),
        ({"$ref": "#"}, "it never ends."),
        ({"$schema": ["x"]}, "it cannot be used: TypeError."),
    ],
)
def test_schema_error_is_reported_with_its_path(schema: Any, why: str) -> None:
    assert asked(schema, "1") == InvalidSchema(why)
