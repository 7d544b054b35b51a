"""An embedding request as a server is asked it: what is ours of its fields is done here, the rest is the server's.

prompts in models.yaml     `input_type` is taken out and the prompt stands before each text; token ids are refused
none                       `input_type` is the server's, some know it; `raw`, which says nothing, is taken out
`truncate`                 is `truncate_prompt_tokens: -1` there, as vLLM calls it
"""

from dataclasses import replace
from typing import Any

from jobs.requests.prompts import RAW, Prompts
from workers.engines.encoders.batching import Unacceptable
from workers.engines.encoders.embed import prompt_of, prompted
from workers.engines.port import Request


def for_server(request: Request, prompts: Prompts | None) -> Request:
    """Raises Unacceptable."""
    body = request.body
    if not prompts and body.get("input_type") != RAW and "truncate" not in body:
        return request
    body = _prompted(body, prompts or Prompts())
    return replace(request, body=_truncated(body))


def _prompted(body: dict[str, Any], prompts: Prompts) -> dict[str, Any]:
    if not prompts and body.get("input_type") != RAW:
        return body
    prompt, inputs = prompt_of(body, prompts), body.get("input")
    rest = {name: value for name, value in body.items() if name != "input_type"}
    if not prompt:
        return rest
    many = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(many, list) or not all(isinstance(one, str) and one for one in many):
        message = (
            "input must be texts that are not empty: this model has a prompt, which cannot stand before token ids."
        )
        raise Unacceptable(message)
    return rest | {"input": prompted(many, prompt)}


def _truncated(body: dict[str, Any]) -> dict[str, Any]:
    wanted = body.get("truncate")
    if "truncate" not in body:
        return body
    if not isinstance(wanted, bool | None):
        raise Unacceptable("truncate must be true or false.", param="truncate")
    rest = {name: value for name, value in body.items() if name != "truncate"}
    if wanted:
        return {"truncate_prompt_tokens": -1} | rest
    if wanted is False:
        rest.pop("truncate_prompt_tokens", None)
    return rest
