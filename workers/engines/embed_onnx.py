"""A model's transformer on ONNX Runtime: the file, and the forward pass through it.

    transformer (torch) ──export──▶ float32.onnx ──quantise, per channel──▶ int8.onnx ──▶ OnnxTransformer

Only the transformer is exported. Pooling and normalising stay with the modules of sentence-transformers, so both
runtimes do the same with its token embeddings. Whether the graph is right is not guessed from the architecture:
`embed_runtime` compares vectors.
"""

import warnings
from pathlib import Path
from typing import Any, Final

#: A file is one protobuf message, of less than 2 GiB.
MOST_BYTES: Final = 1900 << 20
OPSET: Final = 17
INPUTS: Final = ("input_ids", "attention_mask")
OUTPUT: Final = "token_embeddings"


class NotExportable(Exception):
    """ONNX can't hold this model."""


def export(transformer: Any, path: Path) -> None:
    """Write the transformer, which is in float32 on the CPU. Raises NotExportable."""
    import torch

    size = sum(tensor.numel() * 4 for tensor in transformer.parameters())
    if size > MOST_BYTES:
        raise NotExportable(f"{size >> 20} MiB of weights; one ONNX file holds {MOST_BYTES >> 20}")
    ids = torch.ones((2, 8), dtype=torch.long)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # a batch with padding: without any, a tracer may leave the mask out
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


def quantise(source: Path, target: Path) -> None:
    """Weights as int8, with one scale a channel: with one a tensor, MiniLM's vectors are at a cosine of only 0.94."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)


def _tensors_only(transformer: Any) -> Any:
    """Tensors in and out, where sentence-transformers passes a dict on."""
    import torch

    class Tensors(torch.nn.Module):  # type: ignore[misc]  # torch is Any to the checker
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.transformer({"input_ids": input_ids, "attention_mask": attention_mask})[OUTPUT]

    return Tensors().eval()


class OnnxTransformer:
    """Stands for the first module of a sentence-transformers model."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are not ours alone
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._tensor = torch.from_numpy

    def __call__(self, features: dict[str, Any]) -> dict[str, Any]:
        [embeddings] = self._session.run(None, {name: features[name].numpy() for name in INPUTS})
        return features | {OUTPUT: self._tensor(embeddings)}
