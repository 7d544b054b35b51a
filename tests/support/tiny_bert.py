"""A BERT of random weights, as a checkpoint without files of sentence-transformers: made in a moment, and small."""

import shutil
from pathlib import Path
from typing import Any

from workers.engines.model_folders import MINILM, materialise

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def write(folder: Path, **config: Any) -> Path:
    """Write a folder with the checkpoint; the tokenizer is MiniLM's."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = BertModel(BertConfig(**shape, max_position_embeddings=128, **config))
    model.save_pretrained(folder)
    whole = materialise(MINILM, folder)
    for name in TOKENIZER:
        if (whole / name).exists():
            shutil.copy(whole / name, folder / name)
    return folder
