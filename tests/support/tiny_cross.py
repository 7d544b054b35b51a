"""A cross-encoder of random weights, made in a moment: it has no opinion, but an opinion that stays the same."""

import shutil
from pathlib import Path
from typing import Any

from tests.support.tiny_bert import TOKENIZER
from workers.engines.model_folders import MINILM, materialise


def write(folder: Path, **config: Any) -> Path:
    """Write a folder with the checkpoint; the tokenizer is MiniLM's."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(5)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    made = BertConfig(**{"num_labels": 1, "max_position_embeddings": 128, "initializer_range": 0.5, **shape, **config})
    BertForSequenceClassification(made).save_pretrained(folder)
    whole = materialise(MINILM, folder)
    for name in TOKENIZER:
        if (whole / name).exists():
            shutil.copy(whole / name, folder / name)
    return folder
