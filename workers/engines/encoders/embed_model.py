"""A sentence-transformers model on torch or ONNX Runtime, for one thread of the embedding engine.

    transformer (torch) ──export──▶ float32.onnx ──quantise, per channel──▶ int8.onnx ──▶ OnnxTransformer

Only the transformer is exported. Pooling and normalising stay with the modules of sentence-transformers, so both
runtimes treat its token embeddings alike. `runtime_trials` compares vectors to find out whether an exported graph is
right.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.fleet.checkpoint import ENDLESS, UNKNOWN_CONTEXT
from jobs.requests import embedding_prompts
from jobs.requests.embedding_prompts import Own, Prompts
from workers.engines.encoders.batching import KERNELS, padded_width

CPU_BATCH_TOKENS: Final = 4096  # padded tokens in one forward pass
GPU_BATCH_TOKENS: Final = 65_536
ARGUMENTS: Final = frozenset({"dtype", "batch_tokens", "threads", "runtime", *embedding_prompts.ARGUMENTS})
RUNTIMES: Final = ("auto", "torch", "onnx")

Transformer = Callable[[dict[str, Any]], dict[str, Any]]  # token ids and mask in, with token embeddings out


class BadEmbedArgs(ValueError):
    """The configured arguments of an embedding engine can't be used."""


@dataclass(frozen=True, slots=True)
class Computing:
    """A way of computing vectors: torch in a dtype, or ONNX Runtime from a file."""

    dtype: str
    onnx: Path | None = None


class SentenceModel:
    """A loaded embedding model. `source` is a folder or a hub's name, `args` are `engine_args` of models.yaml."""

    def __init__(
        self, source: str, revision: str | None, args: Mapping[str, Any], computing: Computing | None = None
    ) -> None:
        check(args)
        os.environ.setdefault(*KERNELS)
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        self._torch = torch
        gpu = torch.cuda.is_available()
        self.threads = threads_of(args)
        if not gpu:
            torch.set_num_threads(self.threads)
        self._model = SentenceTransformer(
            source,
            device="cuda" if gpu else "cpu",
            revision=revision,
            local_files_only=Path(source).is_dir(),
            trust_remote_code=False,
        )
        self._model.eval()
        self.device = self._model.device
        self._tokenizer = self._model.tokenizer
        self.prompts: Prompts = embedding_prompts.prompts_of(
            args, Own(self._model.prompts, self._model.default_prompt_name)
        )
        self._before, self._after = _special_tokens(self._tokenizer)
        self._prompt_ids = {text: self._bare(text) for text in self.prompts.texts}  # made by one thread: see `_bare`
        self.batch_tokens = int(args.get("batch_tokens") or (GPU_BATCH_TOKENS if gpu else CPU_BATCH_TOKENS))
        self.dimensions: int = self._model.get_embedding_dimension()
        self.longest: int = _longest(self._model)
        self.vocabulary: int = len(self._tokenizer)
        self.layers: int | None = _layers(self._model)
        self.transformer: Transformer = self._transformer(computing or Computing(args.get("dtype", "auto")))
        self._check_prompts()

    def tokens_of(self, texts: list[str]) -> list[list[int]]:
        """Return token ids with the model's special tokens, never truncated."""
        ids: list[list[int]] = self._tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        return ids

    def frame(self, ids: list[int], prompt: str = "") -> list[int]:
        """Put the prompt's token ids before a caller's, and the model's special tokens around both."""
        return [*self._before, *self._prompt_ids[prompt], *ids, *self._after]

    def min_tokens(self, prompt: str = "") -> int:
        """Return the tokens of the shortest possible input: one token behind the prompt, between the special tokens."""
        return len(self.frame([0], prompt))

    def cut(self, ids: list[int], max_tokens: int) -> list[int]:
        """Return the beginning of an input, with its special tokens."""
        return ids if len(ids) <= max_tokens else [*ids[: max_tokens - len(self._after)], *self._after]

    def embed(self, batch: list[list[int]]) -> Any:
        """Return one float32 row of length 1 for each list of token ids, as a numpy array."""
        return self.embed_by(self.transformer, batch)

    def embed_by(self, transformer: Transformer, batch: list[list[int]]) -> Any:
        torch = self._torch
        with torch.inference_mode():
            features = self._features(transformer, batch)
            for module in list(self._model)[1:]:
                features = module(features)
            vectors = torch.nn.functional.normalize(features["sentence_embedding"].float(), dim=1)
            return vectors.cpu().numpy()

    def token_vectors(self, ids: list[int]) -> Any:
        """Return one float32 row of length 1 for each token of the last layer, as a numpy array."""
        torch = self._torch
        with torch.inference_mode():
            tokens = self._features(self.transformer, [ids])["token_embeddings"][0, : len(ids)]
            return torch.nn.functional.normalize(tokens, dim=1).cpu().numpy()

    @property
    def special_tokens(self) -> tuple[int, int]:
        """Return how many tokens the tokenizer puts before and after a text."""
        return len(self._before), len(self._after)

    def _features(self, transformer: Transformer, batch: list[list[int]]) -> dict[str, Any]:
        """Return what the transformer makes of token ids; sums over tokens are made in full precision."""
        width = padded_width(max(map(len, batch)), self.longest)
        padded = self._tokenizer.pad(
            {"input_ids": batch}, padding="max_length", max_length=width, return_tensors="pt", verbose=False
        )
        features = transformer({name: tensor.to(self.device) for name, tensor in padded.items()})
        features["token_embeddings"] = features["token_embeddings"].float()
        return features

    def _bare(self, text: str) -> list[int]:
        """Return token ids without special tokens. A tokenizer raises when two threads call it at once."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
        return ids

    def _check_prompts(self) -> None:
        """Raise BadEmbedArgs for a prompt that leaves no room for a text."""
        for prompt in (self.prompts.plain, self.prompts.query, self.prompts.passage):
            if (least := self.min_tokens(prompt)) > self.longest:
                reason = f"with it the shortest text has {least} tokens, and the model takes {self.longest}"
                raise BadEmbedArgs(f"the prompt {prompt[:40]!r} is too long: {reason}")

    def _transformer(self, computing: Computing) -> Transformer:
        first = self._model[0]
        if computing.onnx:
            session = OnnxTransformer(computing.onnx, self.threads)
            first.to("meta")  # torch's copy of the weights is not needed any more
            return session
        return first.to(_dtype(self._torch, computing.dtype, self.device.type == "cuda"))  # type: ignore[no-any-return]


def check(args: Mapping[str, Any]) -> None:
    """Check the arguments. Raises BadEmbedArgs."""
    if strange := sorted(args.keys() - ARGUMENTS):
        raise BadEmbedArgs(f"{', '.join(strange)}: not among {', '.join(sorted(ARGUMENTS))}")
    if reason := embedding_prompts.wrong(args):
        raise BadEmbedArgs(reason)
    runtime = args.get("runtime", "auto")
    if runtime not in RUNTIMES:
        raise BadEmbedArgs(f"runtime {runtime!r}: not among {', '.join(RUNTIMES)}")
    if runtime == "onnx" and args.get("dtype", "auto") != "auto":
        raise BadEmbedArgs("dtype is torch's; of the runtime onnx the fastest dtype above the floor is taken")


def threads_of(args: Mapping[str, Any]) -> int:
    return int(args.get("threads") or len(os.sched_getaffinity(0)))


def _dtype(torch: Any, name: str, gpu: bool) -> Any:
    """Return bfloat16 where the hardware multiplies it: MiniLM takes a third of the time, at a cosine above 0.9998."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name in known:
        return known[name]
    if name != "auto":
        raise BadEmbedArgs(f"dtype {name!r}: not among auto, {', '.join(known)}")
    cpu = torch.cpu
    fast = torch.cuda.is_bf16_supported() if gpu else cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def _longest(model: Any) -> int:
    """Return the model's own length in tokens, at most its number of positions."""
    stated = model.max_seq_length
    known = [stated] if isinstance(stated, int) and 0 < stated < ENDLESS else []
    known += [_positions(module) for module in model[0].modules() if hasattr(module, "position_embeddings")]
    return min((length for length in known if length), default=UNKNOWN_CONTEXT)


def _positions(module: Any) -> int:
    """Return how many tokens a table of positions has room for; 0 where the module is none.

    RoBERTa and its kin count positions from behind the padding, which has a row of the table.
    """
    table = module.position_embeddings
    padding = getattr(table, "padding_idx", None)
    return getattr(table, "num_embeddings", 0) - (padding + 1 if isinstance(padding, int) else 0)


def _layers(model: Any) -> int | None:
    """Return the number of the transformer's layers; None where the model is not a transformer."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    return getattr(config, "num_hidden_layers", None)


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer puts before and after a text."""
    full, without_special = tokenizer("x")["input_ids"], tokenizer("x", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(without_special)] == without_special)
    return full[:start], full[start + len(without_special) :]


# ONNX Runtime: the file, and the forward pass through it.

#: An ONNX file is one protobuf message of less than 2 GiB.
MAX_ONNX_BYTES: Final = 1900 << 20
OPSET: Final = 17
INPUTS: Final = ("input_ids", "attention_mask")
OUTPUT: Final = "token_embeddings"


class NotExportable(Exception):
    """The model cannot be exported to ONNX."""


def export_onnx(transformer: Any, path: Path) -> None:
    """Write the transformer, in float32 and on the CPU, as ONNX. Raises NotExportable."""
    import torch

    size = sum(tensor.numel() * 4 for tensor in transformer.parameters())
    if size > MAX_ONNX_BYTES:
        raise NotExportable(f"{size >> 20} MiB of weights; one ONNX file holds {MAX_ONNX_BYTES >> 20}")
    ids = torch.ones((2, 8), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # a batch with padding: without it, the tracer may leave the mask out
    # The exporter by tracing: it is deprecated, yet writes MiniLM in 1 s where the one by torch.export takes 7.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _tensors_only(transformer),
            (ids, mask),
            str(path),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in (*INPUTS, OUTPUT)},
            opset_version=OPSET,
            dynamo=False,
        )


def quantise_onnx(source: Path, target: Path) -> None:
    """Quantise weights to int8, one scale a channel: one a tensor brings MiniLM's vectors to a cosine of 0.94."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def _tensors_only(transformer: Any) -> Any:
    """Wrap the transformer to take and return tensors, where sentence-transformers passes a dict."""
    import torch

    class Tensors(torch.nn.Module):  # type: ignore[misc]  # torch is Any to the checker
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.transformer({"input_ids": input_ids, "attention_mask": attention_mask})[OUTPUT]

    return Tensors().eval()


class OnnxTransformer:
    """The first module of a sentence-transformers model, run by ONNX Runtime."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other processes need the cores too
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._tensor = torch.from_numpy

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        [embeddings] = self._session.run(None, {name: features[name].numpy() for name in INPUTS})
        return features | {OUTPUT: self._tensor(embeddings)}
