"""The tokenizer of a base, without its weights."""

from typing import Any


def load(folder: str) -> tuple[Any, int]:
    """Return the tokenizer of a base, and how many tokens the base can hold. Raises OSError, ValueError."""
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    context: int = AutoConfig.from_pretrained(folder, local_files_only=True).max_position_embeddings
    return tokenizer, context
