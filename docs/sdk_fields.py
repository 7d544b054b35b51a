"""The fields that the SDK sends in the bodies of its main methods, and what becomes of each, by engine.

A test sends each field with its value here and compares; docs/generate.py writes the table. A field whose value is one
of several types has a row for each type: `tools: function`.
"""

from typing import Any, Final, NamedTuple

TAKEN: Final = "taken"
PASSED: Final = "passed on"
IGNORED: Final = "ignored"
REFUSED: Final = "refused"
MEANINGS: Final = {
    TAKEN: "Nightmill itself does what the field asks for.",
    PASSED: "The engine gets the field, and does with it what it can.",
    IGNORED: "A hint without a meaning for the engine: it is accepted, and changes nothing.",
    REFUSED: "400, with the field in `param`.",
}


class Resource(NamedTuple):
    """A body of the SDK. `base` is a body that is accepted; `fields` has a value and one outcome, or one an engine."""

    method: str
    path: str
    engines: tuple[str, ...]
    base: dict[str, Any]
    fields: dict[str, tuple[Any, ...]]


_MODEL = "fake-model"
_MESSAGES: Final = [{"role": "user", "content": "Hello"}]
_FUNCTION: Final = {"name": "look", "parameters": {"type": "object", "properties": {}}}
_SCHEMA: Final = {"type": "object", "properties": {"a": {"type": "string"}}}
_EFFORT: Final = "low"
_SERVERS: Final = ("http", "vllm")
_HINT: Final = (PASSED, IGNORED)

CHATS: Final = Resource(
    "chat.completions.create",
    "chat/completions",
    _SERVERS,
    {"model": _MODEL, "messages": _MESSAGES, "store": True},
    {
        "messages": (_MESSAGES, PASSED),
        "model": (_MODEL, PASSED),
        "audio": ({"voice": "alloy", "format": "wav"}, REFUSED),
        "frequency_penalty": (0.5, PASSED),
        "function_call": ({"name": "look"}, REFUSED),
        "functions": ([_FUNCTION], REFUSED),
        "logit_bias": ({"7": 1}, PASSED),
        "logprobs": (True, PASSED),
        "max_completion_tokens": (9, PASSED),
        "max_tokens": (9, PASSED),
        "metadata": ({"a": "b"}, TAKEN),
        "modalities": (["audio"], REFUSED),
        "moderation": ({"model": "m"}, REFUSED),
        "n": (2, PASSED),
        "parallel_tool_calls": (False, PASSED),
        "prediction": ({"type": "content", "content": "Hi"}, *_HINT),
        "presence_penalty": (0.5, PASSED),
        "prompt_cache_key": ("a", *_HINT),
        "prompt_cache_options": ({"mode": "implicit"}, *_HINT),
        "prompt_cache_retention": ("24h", *_HINT),
        "reasoning_effort": (_EFFORT, PASSED),
        "response_format: json_object": ({"type": "json_object"}, PASSED),
        "response_format: json_schema": (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}},
            PASSED,
        ),
        "response_format: text": ({"type": "text"}, PASSED),
        "safety_identifier": ("a", *_HINT),
        "seed": (7, PASSED),
        "service_tier": ("default", TAKEN),
        "stop": ("a", PASSED),
        "store": (True, TAKEN),
        "stream": (True, PASSED, TAKEN),
        "stream_options": ({"include_usage": True}, PASSED, TAKEN),
        "temperature": (0.5, PASSED),
        "tool_choice": ("auto", PASSED),
        "tools: custom": ([{"type": "custom", "custom": {"name": "look"}}], PASSED),
        "tools: function": ([{"type": "function", "function": _FUNCTION}], PASSED),
        "top_logprobs": (2, PASSED),
        "top_p": (0.5, PASSED),
        "user": ("a", PASSED),
        "verbosity": ("low", *_HINT),
        "web_search_options": ({"search_context_size": "low"}, REFUSED),
    },
)
_REFUSED_TOOLS: Final = (
    "apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "image_generation", "local_shell",
    "mcp", "namespace", "programmatic_tool_calling", "shell", "tool_search", "web_search", "web_search_2025_08_26",
    "web_search_preview", "web_search_preview_2025_03_11",
)  # fmt: skip
ANSWERS: Final = Resource(
    "responses.create",
    "responses",
    _SERVERS,
    {"model": _MODEL, "input": "Hello"},
    {
        "access_programs": ({"programs": []}, *_HINT),
        "background": (True, TAKEN),
        "background_options": ({}, *_HINT),
        "context_management": ([{"type": "compaction"}], PASSED, REFUSED),
        "conversation": ("$conversation", TAKEN),
        "image": ({"detail": "low"}, REFUSED),
        "include": (["message.output_text.logprobs"], PASSED),
        "input": (_MESSAGES, PASSED),
        "instructions": ("Be brief.", PASSED),
        "max_output_tokens": (9, PASSED),
        "max_tool_calls": (2, PASSED),
        "metadata": ({"a": "b"}, TAKEN),
        "model": (_MODEL, PASSED),
        "moderation": ({"model": "m"}, REFUSED),
        "parallel_tool_calls": (False, PASSED),
        "previous_response_id": ("$response", TAKEN),
        "prompt": ({"id": "$prompt"}, TAKEN),
        "prompt_cache_key": ("a", PASSED),
        "prompt_cache_options": ({"mode": "implicit"}, *_HINT),
        "prompt_cache_retention": ("24h", *_HINT),
        "reasoning": ({"effort": _EFFORT}, PASSED),
        "safety_identifier": ("a", *_HINT),
        "service_tier": ("default", TAKEN),
        "store": (True, TAKEN),
        "stream": (True, TAKEN),
        "stream_options": ({"include_obfuscation": False}, PASSED, TAKEN),
        "temperature": (0.5, PASSED),
        "text": ({"format": {"type": "text"}}, PASSED),
        "tool_choice": ("auto", PASSED),
        "tools: file_search": ([{"type": "file_search", "vector_store_ids": ["$store"]}], TAKEN),
        "tools: function": ([{"type": "function", **_FUNCTION}], PASSED),
        **{f"tools: {kind}": ([{"type": kind}], REFUSED) for kind in _REFUSED_TOOLS},
        "top_logprobs": (2, PASSED),
        "top_p": (0.5, PASSED),
        "truncation": ("auto", PASSED),
        "user": ("a", PASSED),
    },
)
EMBEDDINGS: Final = Resource(
    "embeddings.create",
    "embeddings",
    ("http", "vllm", "embed"),
    {"model": _MODEL, "input": "Hello"},
    {
        "input": (["Hello", "you"], PASSED),
        "model": (_MODEL, PASSED),
        "dimensions": (8, PASSED),
        "encoding_format": ("base64", PASSED),
        "user": ("a", PASSED, PASSED, IGNORED),
    },
)
_BATCH: Final = {
    "input_file_id": "$batch_file",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
}
BATCHES: Final = Resource(
    "batches.create",
    "batches",
    ("",),
    _BATCH,
    {
        "completion_window": ("24h", TAKEN),
        "endpoint": ("/v1/chat/completions", TAKEN),
        "input_file_id": ("$batch_file", TAKEN),
        "metadata": ({"a": "b"}, TAKEN),
        "output_expires_after": ({"anchor": "created_at", "seconds": 3600}, TAKEN),
    },
)
_CHECK: Final = {
    "type": "string_check", "name": "same", "input": "{{ sample.output_text }}", "operation": "eq",
    "reference": "{{ item.a }}",
}  # fmt: skip
_CUSTOM: Final = {"type": "custom", "item_schema": _SCHEMA, "include_sample_schema": True}
_JUDGE: Final = {"model": _MODEL, "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}
EVALS: Final = Resource(
    "evals.create",
    "evals",
    ("",),
    {"data_source_config": _CUSTOM, "testing_criteria": [_CHECK]},
    {
        "data_source_config: custom": (_CUSTOM, TAKEN),
        "data_source_config: logs": ({"type": "logs"}, TAKEN),
        "data_source_config: stored_completions": ({"type": "stored_completions"}, TAKEN),
        "testing_criteria: label_model": (
            [{"type": "label_model", "name": "a", "labels": ["y", "n"], "passing_labels": ["y"], **_JUDGE}],
            TAKEN,
        ),
        "testing_criteria: python": (
            [{"type": "python", "name": "a", "source": "def grade(sample, item):\n    return 1.0"}],
            TAKEN,
        ),
        "testing_criteria: score_model": ([{"type": "score_model", "name": "a", **_JUDGE}], TAKEN),
        "testing_criteria: string_check": ([_CHECK], TAKEN),
        "testing_criteria: text_similarity": (
            [
                {
                    "type": "text_similarity",
                    "name": "a",
                    "input": "{{ sample.output_text }}",
                    "reference": "{{ item.a }}",
                    "evaluation_metric": "bleu",
                    "pass_threshold": 0.5,
                }
            ],
            TAKEN,
        ),
        "metadata": ({"a": "b"}, TAKEN),
        "name": ("mine", TAKEN),
    },
)
_ITEMS: Final = {"type": "file_content", "content": [{"item": {"a": "b"}, "sample": {"output_text": "b"}}]}
_ASKED: Final = {"source": _ITEMS, "model": _MODEL, "input_messages": {"type": "template", "template": _MESSAGES}}
RUNS: Final = Resource(
    "evals.runs.create",
    "evals/$eval/runs",
    ("",),
    {"data_source": {"type": "jsonl", "source": _ITEMS}},
    {
        "data_source: completions": ({"type": "completions", **_ASKED}, TAKEN),
        "data_source: jsonl": ({"type": "jsonl", "source": _ITEMS}, TAKEN),
        "data_source: responses": ({"type": "responses", **_ASKED}, TAKEN),
        "metadata": ({"a": "b"}, TAKEN),
        "name": ("mine", TAKEN),
    },
)
_BASE: Final = "smollm2-135m-instruct"
JOBS: Final = Resource(
    "fine_tuning.jobs.create",
    "fine_tuning/jobs",
    ("",),
    {"model": _BASE, "training_file": "$training_file"},
    {
        "model": (_BASE, TAKEN),
        "training_file": ("$training_file", TAKEN),
        "hyperparameters": ({"n_epochs": 1, "batch_size": 2, "learning_rate_multiplier": 0.5}, TAKEN),
        "integrations: wandb": ([{"type": "wandb", "wandb": {"project": "mine"}}], TAKEN),
        "metadata": ({"a": "b"}, TAKEN),
        "method: dpo": ({"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}, TAKEN),
        "method: reinforcement": ({"type": "reinforcement"}, REFUSED),
        "method: supervised": ({"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}, TAKEN),
        "seed": (7, TAKEN),
        "suffix": ("mine", TAKEN),
        "validation_file": ("$training_file", TAKEN),
    },
)
RESOURCES: Final = (CHATS, ANSWERS, EMBEDDINGS, BATCHES, EVALS, RUNS, JOBS)
