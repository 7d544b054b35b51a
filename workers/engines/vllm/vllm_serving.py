"""The seam to vLLM's own modules: start its OpenAI serving layer in this process, without its HTTP server.

    args (dict) ──argv──▶ vLLM's parser ──▶ AsyncLLM (EngineCore and workers: child processes)
    url, body ──▶ vLLM's request model ──▶ its serving object ──▶ its response model ──▶ dict

Only this module and `vllm_engine` import vLLM, and inside functions: loading it takes about 20 s.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path
from typing import Any

from jobs.requests.endpoints import CHAT, RESPONSES
from workers.engines.adapter_slots import AdapterSlots
from workers.engines.vllm import silence
from workers.engines.wire import complete_error

FEW_CPUS = 4  # up to here the engine gets every core; of more cores vLLM leaves some to other processes

DEFAULTS: dict[str, Any] = {
    "enable_prompt_tokens_details": True,  # cached tokens in the usage
    "disable_log_stats": True,  # Nightmill has metrics of its own
    "scheduling_policy": "priority",  # interactive clients go before batches
}
CPU_DEFAULTS: dict[str, Any] = {"kv_cache_memory_bytes": 2 * 1024**3}  # vLLM would take most of the machine
CPU_SEQUENCES, GPU_SEQUENCES = 128, 1024  # vLLM's defaults for the sequences that run at once
LINES_WHILE_INTERACTIVE = 4  # lines of batches that a CPU runs while an interactive client waits: they share every step
#: Sequences of vLLM on a CPU that batches cannot take: a priority overtakes requests that wait, not those that run.
INTERACTIVE_SEQUENCES = 32
OURS = frozenset({"model", "served_model_name"})
_OWN_DTYPE = frozenset({"dtype", "quantization", "hf_overrides"})  # arguments that overrule the choice of a dtype
_QUANTISED = frozenset({"quantization_config", "compression_config"})

_NOT_OPENAI: dict[str, Any] = {
    "prompt_logprobs": True, "prompt_token_ids": True, "prompt_text": True, "kv_transfer_params": True,
    "ec_transfer_params": True, "metrics": True, "input_messages": True, "output_messages": True,
}  # fmt: skip
_NOT_OPENAI_CHOICE = ("stop_reason", "token_ids", "routed_experts", "prompt_logprobs", "prompt_token_ids")
_ONLY_IF_SAID = ("reasoning", "annotations", "audio", "function_call")
_NOT_OPENAI_USAGE = (
    "created_cache_tokens", "multimodal_tokens", "tool_output_tokens",
    "input_tokens_per_turn", "cached_tokens_per_turn", "output_tokens_per_turn", "tool_output_tokens_per_turn",
)  # fmt: skip


class BadEngineArgs(ValueError):
    """vLLM's own parser refuses the configured arguments."""


class Unsupported(Exception):
    """The model has no such endpoint: embeddings by a chat model, chat by an embedding model."""


def prepare_environment(model: str, args: Mapping[str, Any], patience: float = 300.0) -> None:
    """Set the variables that vLLM reads at its import. Variables that are set already stay.

    `patience` is the time in seconds after which a silent engine without progress counts as hung.
    """
    cpus, longest = sorted(os.sched_getaffinity(0)), str(math.ceil(patience * silence.BUSY))
    variables = {
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",  # `caps` keeps URLs away; none is redirected either
        "VLLM_LOGGING_LEVEL": "WARNING",
        # a fork would inherit the locks and sockets of the worker's other threads
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # vLLM gives up a start, and a step on several devices, that takes longer, whatever progress it makes
        **dict.fromkeys(("VLLM_ENGINE_READY_TIMEOUT_S", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"), longest),
    }
    if len(cpus) <= FEW_CPUS and args.get("tensor_parallel_size", 1) == 1:
        variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cpus))
    if args.get("enforce_eager"):
        # eager promises that nothing is compiled, yet the first log-prob compiles for 20 s and needs a C++ compiler
        variables["TORCHDYNAMO_DISABLE"] = "1"
    if Path(model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    for name, value in variables.items():
        os.environ.setdefault(name, value)


class VllmServing:
    """vLLM's serving objects over one running engine. `slots` holds the adapters that it has loaded."""

    def __init__(self, client: Any, state: Any, stack: AsyncExitStack) -> None:
        self._client = client
        self._state = state
        self._stack = stack
        self.slots = AdapterSlots()
        self._endpoints: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._completion,
            "/v1/responses": self._response,
            "/v1/embeddings": self._embedding,
        }

    @classmethod
    async def open(cls, model: str, names: tuple[str, ...], args: Mapping[str, Any]) -> "VllmServing":
        from starlette.datastructures import State
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

        parsed = parse(model, names, args)
        async with AsyncExitStack() as stack:
            client = await stack.enter_async_context(build_async_engine_client(parsed))
            state = State()
            await init_app_state(client, state, parsed, await client.get_supported_tasks())
            return cls(client, state, stack.pop_all())
        raise AssertionError("an exit stack swallows nothing")

    @property
    def state(self) -> Any:
        """Return vLLM's own serving objects, by name."""
        return self._state

    @property
    def dead(self) -> bool:
        return bool(self._client.errored)

    async def ping(self) -> None:
        """Wait until the engine's loop answers, between two steps. Raises what vLLM raises when it is dead."""
        await self._client.is_sleeping()

    async def close(self) -> None:
        await self._stack.aclose()

    async def ask(self, url: str, body: dict[str, Any]) -> Any:
        """Return vLLM's answer: one of its response models, its ErrorResponse, or a dict. Raises what vLLM raises."""
        return await self._endpoints[url](body)

    async def length(self, url: str, body: dict[str, Any]) -> tuple[int, int]:
        """Return the tokens of the prompt as the model reads it, and of the model's context.

        Raises what vLLM raises.
        """
        renderer = self._serving("online_renderer")
        return len(await prompt_tokens(renderer, url, body)), renderer.model_config.max_model_len

    async def _chat(self, body: dict[str, Any]) -> Any:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        serving = self._serving("openai_serving_chat")
        return await serving.create_chat_completion(ChatCompletionRequest.model_validate(body), None)

    async def _completion(self, body: dict[str, Any]) -> Any:
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        serving = self._serving("openai_serving_completion")
        return await serving.create_completion(CompletionRequest.model_validate(body), None)

    async def _response(self, body: dict[str, Any]) -> Any:
        from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

        serving = self._serving("openai_serving_responses")
        return await serving.create_responses(ResponsesRequest.model_validate(body), None)

    async def _embedding(self, body: dict[str, Any]) -> Any:
        from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest

        serving = self._serving("serving_embedding")
        response = await serving(EmbeddingCompletionRequest.model_validate(body), None)
        return json.loads(response.body)

    def _serving(self, name: str) -> Any:
        serving = getattr(self._state, name, None)
        if serving is None:
            raise Unsupported
        return serving


def batch_limits(args: Mapping[str, Any], while_interactive: int) -> tuple[int, int] | None:
    """Return the limit of batch lines while an interactive client waits, and while none does; None on a GPU.

    The second limit is an eighth above `max_num_seqs`, so that the engine stays full while an ended line is replaced.
    """
    from vllm.platforms import current_platform

    if not while_interactive and not current_platform.is_cpu():
        return None
    running = int(args.get("max_num_seqs") or (CPU_SEQUENCES if current_platform.is_cpu() else GPU_SEQUENCES))
    usual = _usual(running)
    return min(while_interactive or LINES_WHILE_INTERACTIVE, usual), usual


def cpu_sequences(args: Mapping[str, Any]) -> int:
    """Return `max_num_seqs` for vLLM on a CPU, with room for interactive clients beside a full batch."""
    from vllm.engine.arg_utils import human_readable_int

    sequences = _usual(int(args.get("max_num_seqs") or CPU_SEQUENCES)) + INTERACTIVE_SEQUENCES
    tokens: int = human_readable_int(str(args.get("max_num_batched_tokens") or sequences))  # vLLM reads 2k too
    return min(sequences, tokens)  # vLLM does not start with more sequences than tokens


def wide(model: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments for float32 on a CPU where torch would emulate half precision; otherwise none.

    Without AVX-512 emulation takes four times as long (SmolLM2-135M, two cores with AVX2). Applies to a folder of plain
    weights that leaves half of the memory free when the weights and the KV cache are twice as large.
    """
    import torch
    from vllm.platforms import current_platform

    emulated = platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() != "AVX512"
    if not current_platform.is_cpu() or not emulated or _OWN_DTYPE & args.keys():
        return {}
    size, cache = _plain_size(Path(model)), args.get("kv_cache_memory_bytes", 2 * CPU_DEFAULTS["kv_cache_memory_bytes"])
    if not size or not isinstance(cache, int) or 2 * (2 * size + cache) > _memory():
        return {}
    return {"dtype": "float32", "kv_cache_memory_bytes": cache}


def _plain_size(folder: Path) -> int:
    """Return the bytes of a folder's weights; 0 where they are quantised, of the hub, or of another format."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        quantised = any(_QUANTISED & part.keys() for part in (config, config.get("text_config") or {}))
        return 0 if quantised else sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    except (OSError, ValueError, AttributeError):
        return 0


def _memory() -> int:
    """Return the memory of the machine, or the container's limit, in bytes."""
    from vllm.utils import cpu_resource_utils

    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(whole, cpu_resource_utils.get_cgroup_memory_limit() or whole)


def _usual(running: int) -> int:
    return running + max(1, running // 8)


def plain(reply: Any) -> dict[str, Any]:
    """Return a response model as OpenAI would write it: without the fields that only vLLM has."""
    if isinstance(reply, dict):
        return reply
    return _openai(reply.model_dump(mode="json", by_alias=True, exclude=_NOT_OPENAI))


def plain_event(event: dict[str, Any], *, usage: bool = False) -> dict[str, Any]:
    """Return one event of a stream without vLLM's fields: a chunk, or an event that may hold the response so far.

    With `usage`, which the stream has at its end, each chunk before it has a null usage.
    """
    if usage and "choices" in event:
        event.setdefault("usage", None)
    _drop(event, _NOT_OPENAI)
    if isinstance(error := event.get("error"), dict):  # vLLM's code is a status
        status = error.get("code")
        event["error"] = complete_error(status if isinstance(status, int) else 500, error)
    response = event.get("response")
    if isinstance(response, dict):
        _openai(plain_event(response))
        if event.get("type") == "response.completed" and response.get("status") == "incomplete":
            event["type"] = "response.incomplete"  # vLLM ends every response as completed
    return _openai(event)


def _openai(content: dict[str, Any]) -> dict[str, Any]:
    for choice in content.get("choices", ()):
        _drop(choice, _NOT_OPENAI_CHOICE)
        for message in (choice.get("message", {}), choice.get("delta", {})):
            _drop(message, [name for name in _ONLY_IF_SAID if message.get(name) is None])
    for details in (content.get("usage") or {}).values():
        if isinstance(details, dict):
            _drop(details, _NOT_OPENAI_USAGE)
    return content


def _drop(fields: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        fields.pop(name, None)


def parse(model: str, names: tuple[str, ...], args: Mapping[str, Any]) -> Any:
    """Parse the configured arguments by vLLM's own parser, which knows their types, defaults and conflicts."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def refuse(message: str) -> None:
        raise BadEngineArgs(f"engine arguments of {model}: {message}")

    if taken := OURS & args.keys():
        refuse(f"{', '.join(sorted(taken))} can't be set here")
    parser = make_arg_parser(FlexibleArgumentParser())
    parser.error = refuse
    arguments = DEFAULTS | dict(args)
    if current_platform.is_cpu():
        arguments = CPU_DEFAULTS | wide(model, args) | arguments | {"max_num_seqs": cpu_sequences(args)}
    parsed = parser.parse_args(
        ["--model", model, "--served-model-name", *names, *argv(arguments, parser._option_string_actions)]
    )
    try:
        validate_parsed_serve_args(parsed)
    except (TypeError, ValueError) as error:
        raise BadEngineArgs(f"engine arguments of {model}: {error}") from error
    return parsed


def argv(args: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Return `{"max_model_len": 2048, "enforce_eager": True}` as arguments of a command line."""
    words: list[str] = []
    for name, value in args.items():
        option = "--" + name.replace("_", "-")
        if value is None:
            continue
        if value is False:
            words += ["--no-" + option[2:]] if "--no-" + option[2:] in options else []
        elif value is True:
            words.append(option)
        elif isinstance(value, list | tuple):
            words += [option, *map(str, value)]
        else:
            words += [option, json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


# Count a prompt by vLLM's own rendering (request models, chat template, tokenizer), but without its limit: rendered for
# an answer, a prompt beyond the context is refused before it is counted to its end.


class Uncounted(Exception):
    """vLLM refuses to render the request."""


async def prompt_tokens(renderer: Any, url: str, body: dict[str, Any]) -> list[int]:
    """Return the token ids of a chat or a response. Raises Uncounted, and whatever vLLM and chat templates raise."""
    chat, response = _unlimited_models()
    if url == CHAT:
        rendered = await renderer.render_chat(chat.model_validate(body), skip_mm_cache=True)
        inputs = rendered[1] if isinstance(rendered, tuple) else None
    elif url == RESPONSES:
        rendered = await renderer.render_responses(response.model_validate(body), skip_mm_cache=True)
        inputs = [rendered.engine_input] if hasattr(rendered, "engine_input") else None
    else:
        raise Uncounted(url)
    if inputs is None:
        raise Uncounted
    return [token for prompt in inputs for token in prompt["prompt_token_ids"]]


async def text_tokens(renderer: Any, model: str, text: str) -> list[int]:
    """Return the token ids of a text as a completion's prompt. Raises Uncounted, and what vLLM raises."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    body = {"model": model, "prompt": text, "max_tokens": 1}
    inputs = await renderer.render_completion(CompletionRequest.model_validate(body), skip_mm_cache=True)
    if not isinstance(inputs, list):
        raise Uncounted
    return [token for prompt in inputs for token in prompt["prompt_token_ids"]]


@cache
def _unlimited_models() -> tuple[Any, Any]:
    """Return vLLM's request models without the limit on their length."""
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
