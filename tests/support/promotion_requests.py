"""Promotions over HTTP to test with: their gates as clients write them."""

from typing import Any

ALIAS = "support-bot"
MESSAGES = {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]}
NOT_WORSE = {"type": "not_worse_than_incumbent", "margin": 5}


def gate(eval_id: str, file_id: str, rule: dict[str, Any] = NOT_WORSE, **source: Any) -> dict[str, Any]:
    """Return a gate whose run asks the alias for the answers to the items of a file."""
    items = {"type": "file_id", "id": file_id}
    asked = {"type": "completions", "source": items, "model": ALIAS, "input_messages": MESSAGES} | source
    return {"eval_id": eval_id, "data_source": asked, "rule": rule}


def minimum(score: float) -> dict[str, Any]:
    return {"type": "minimum", "score": score}


def to_model(model: str) -> dict[str, Any]:
    return {"type": "alias", "id": ALIAS, "model": model}
