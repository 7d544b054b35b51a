"""How long a prompt is, by vLLM's own rendering: its request models, chat template and tokenizer, without its limit.

Rendered for an answer, a prompt beyond the context is refused, and not counted to its end.
"""

from functools import cache
from typing import Any

from jobs.requests.endpoints import CHAT, RESPONSES


class Uncounted(Exception):
    """vLLM refuses to render the request."""


async def tokens(renderer: Any, url: str, body: dict[str, Any]) -> int:
    """Of a chat or a response. Raises Uncounted, and whatever vLLM and chat templates raise."""
    chat, response = _unlimited()
    if url == CHAT:
        said = await renderer.render_chat(chat.model_validate(body), skip_mm_cache=True)
        inputs = said[1] if isinstance(said, tuple) else None
    elif url == RESPONSES:
        said = await renderer.render_responses(response.model_validate(body), skip_mm_cache=True)
        inputs = [said.engine_input] if hasattr(said, "engine_input") else None
    else:
        raise Uncounted(url)
    if inputs is None:
        raise Uncounted
    return sum(len(one["prompt_token_ids"]) for one in inputs)


@cache
def _unlimited() -> tuple[Any, Any]:
    """vLLM's request models, to be tokenized whatever their length."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
    from vllm.renderers import TokenizeParams

    class Chat(ChatCompletionRequest):  # type: ignore[misc]
        def build_tok_params(self, model_config: Any) -> Any:  # noqa: ARG002
            return TokenizeParams(max_total_tokens=None, add_special_tokens=self.add_special_tokens)

    class Response(ResponsesRequest):  # type: ignore[misc]
        def build_tok_params(self, model_config: Any) -> Any:  # noqa: ARG002
            return TokenizeParams(max_total_tokens=None)

    return Chat, Response
