"""Answers and errors of OpenAI-compatible servers, with their documented quirks."""

from workers.engines.port import Usage

VLLM_CHAT = """{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,
"message":{"role":"assistant","content":"Paris.","refusal":null,"annotations":null,"audio":null,
"function_call":null,"tool_calls":[],"reasoning":null},"logprobs":null,"finish_reason":"stop",
"stop_reason":null,"token_ids":null}],"service_tier":null,"system_fingerprint":null,
"usage":{"prompt_tokens":11,"total_tokens":14,"completion_tokens":3,"prompt_tokens_details":null},
"prompt_logprobs":null,"prompt_token_ids":null,"kv_transfer_params":null}"""
SGLANG_CHAT = """{"id":"a1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,
"message":{"role":"assistant","content":"Paris.","reasoning_content":"hm","tool_calls":null},
"logprobs":null,"finish_reason":"stop","matched_stop":2}],"usage":{"prompt_tokens":12,
"total_tokens":32,"completion_tokens":20,"prompt_tokens_details":{"cached_tokens":8},
"reasoning_tokens":7,"completion_tokens_details":null},"metadata":{"weight_version":"default"}}"""
TRTLLM_CHAT = """{"id":"chatcmpl-2","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,
"message":{"role":"assistant","content":"Paris.","reasoning_content":null,"reasoning":null,
"tool_calls":[]},"logprobs":null,"finish_reason":"stop","stop_reason":null,
"mm_embedding_handle":null,"disaggregated_params":null,"avg_decoded_tokens_per_iter":1.0}],
"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,
"prompt_tokens_details":{"cached_tokens":4}},"prompt_token_ids":null}"""
TGI_CHAT = """{"object":"chat.completion","id":"","created":1,"model":"m","system_fingerprint":"3.3.6-sha",
"choices":[{"index":0,"message":{"role":"assistant","content":"Paris."},"logprobs":null,
"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13}}"""
LLAMA_CPP_CHAT = """{
"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"Paris."}}],
"created":1,"model":"m","system_fingerprint":"b1-x","object":"chat.completion",
"usage":{"completion_tokens":3,"prompt_tokens":13,"total_tokens":16,
"prompt_tokens_details":{"cached_tokens":12}},"id":"chatcmpl-3","timings":{"cache_n":12,
"prompt_n":1,"prompt_ms":30.9,"predicted_n":3,"predicted_per_second":52.94}}"""
ORT_GENAI_CHAT = """{"model":"m","choices":[{"delta":{"role":"assistant","content":"Paris.","tool_calls":[]},
"message":{"role":"assistant","content":"Paris.","name":null,"tool_call_id":null,
"function_call":null,"tool_calls":[]},"index":0,"finish_reason":"stop","finish_details":null,
"logprobs":null}],"usage":null,"system_fingerprint":null,"created":1,
"CreatedAt":"2025-10-06T13:15:14+00:00","id":"chat.id.1","StreamEvent":null,"IsDelta":false,
"Successful":true,"error":null,"HttpStatusCode":0,"HeaderValues":null,"object":"chat.completion"}"""
RESPONSES = """{"id":"resp_1","object":"response","status":"completed","error":null,"output":[],
"usage":{"input_tokens":8,"input_tokens_details":{"cached_tokens":2},"output_tokens":30,
"output_tokens_details":{"reasoning_tokens":25,"tool_output_tokens":0},"total_tokens":38}}"""
EMBEDDINGS = """{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1]}],"model":"m",
"usage":{"prompt_tokens":6,"total_tokens":6,"completion_tokens":0,"prompt_tokens_details":null}}"""

ANSWERS = {
    "vllm": (VLLM_CHAT, Usage(11, 0, 3, 0)),
    "sglang": (SGLANG_CHAT, Usage(12, 8, 20, 7)),
    "tensorrt-llm": (TRTLLM_CHAT, Usage(9, 4, 3, 0)),
    "tgi": (TGI_CHAT, Usage(10, 0, 3, 0)),
    "llama.cpp": (LLAMA_CPP_CHAT, Usage(13, 12, 3, 0)),
    "onnxruntime-genai": (ORT_GENAI_CHAT, Usage()),
    "responses": (RESPONSES, Usage(8, 2, 30, 25)),
    "embeddings": (EMBEDDINGS, Usage(6, 0, 0, 0)),
    "usage-of-strange-types": ('{"usage":{"prompt_tokens":"many"}}', Usage()),
    "usage-missing": ('{"choices":[]}', Usage()),
}

ERRORS = {
    "openai": (
        (
            '{"error":{"message":"too long","type":"invalid_request_error","param":"messages",'
            '"code":"context_length_exceeded"}}'
        ),
        {"message": "too long", "code": "context_length_exceeded", "param": "messages"},
    ),
    "vllm": (
        '{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}',
        {"message": "too long", "type": "invalid_request_error", "param": None, "code": None},
    ),
    "vllm-before-0.10-and-sglang-and-tensorrt-llm": (
        '{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}',
        {"message": "too long", "type": "invalid_request_error", "param": None, "code": None},
    ),
    "fastapi": ('{"detail":"Not Found"}', {"message": "Not Found", "type": "invalid_request_error"}),
    "fastapi-validation": (
        '{"detail":[{"loc":["body","messages"],"msg":"field required","type":"missing"}]}',
        {"message": '[{"loc":["body","messages"],"msg":"field required","type":"missing"}]'},
    ),
    "tgi": (
        '{"error":"Input validation error: `max_new_tokens` must be <= 2048","error_type":"validation"}',
        {"message": "Input validation error: `max_new_tokens` must be <= 2048", "type": "invalid_request_error"},
    ),
    "llama.cpp": (
        (
            '{"error":{"code":400,"message":"the request exceeds the available context size",'
            '"type":"exceed_context_size_error","n_prompt_tokens":4476,"n_ctx":4096}}'
        ),
        {
            "message": "the request exceeds the available context size",
            "type": "exceed_context_size_error",
            "param": None,
            "code": None,
        },
    ),
    "strange": (
        '{"error":{"message":"no","type":["a"],"param":3,"code":"500"}}',
        {"message": "no", "type": "invalid_request_error", "param": None, "code": None},
    ),
    "plain-text": ("no such thing\n", {"message": "no such thing"}),
    "empty": ("", {"message": "Bad Request"}),
    "a-json-string": ('"nope"', {"message": "nope"}),
    "an-empty-object": ("{}", {"message": "Bad Request"}),
}
