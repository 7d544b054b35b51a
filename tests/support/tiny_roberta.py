"""A RoBERTa of random weights, as CodeBERT comes: nothing of sentence-transformers, no length in its tokenizer."""

from pathlib import Path

CONTEXT = 512
SAMPLE = ["def add(a, b): return a + b", "class Shelf: pass", "for one in many: print(one)"]


def write(folder: Path, context: int = CONTEXT, *, ranks: bool = False) -> Path:
    """Write a folder with the checkpoint of a model that embeds or ranks.

    It has two more positions than tokens: one for padding, and one before that.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification, RobertaModel

    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(names.values()), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, cls_token="<s>", sep_token="</s>", **names)
    fast.save_pretrained(folder)
    torch.manual_seed(5)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    config = RobertaConfig(vocab_size=len(fast), max_position_embeddings=context + 2, type_vocab_size=1, **shape)
    if ranks:
        config.num_labels = 1
    (RobertaForSequenceClassification if ranks else RobertaModel)(config).save_pretrained(folder)
    return folder
