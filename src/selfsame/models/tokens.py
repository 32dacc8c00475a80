"""The miniature world's words: a small byte-pair vocabulary saved as a standard CLIPTokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from selfsame.images.files import written_whole
from selfsame.models.mannequin import MAX_TOKENS

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(lines: Iterable[str], vocab_size: int, folder: Path) -> CLIPTokenizer:
    """Learn merges from captions and save `vocab.json`, `merges.txt` and a tokenizer config into a folder."""
    tokenizer = Tokenizer(models.BPE(unk_token=EOS, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_clip_pattern(), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    for c in alphabet:
        vocab[c + "</w>"] = len(vocab)
    merges = [" ".join(m) if isinstance(m, list) else m for m in learned["merges"]]
    for merge in merges:
        vocab.setdefault(merge.replace(" ", ""), len(vocab))
    for special in (BOS, EOS):
        vocab[special] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("vocab.json", json.dumps(vocab, ensure_ascii=False)), ("merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")):
        with written_whole(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    made = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=MAX_TOKENS, pad_token=EOS)
    made.save_pretrained(folder)
    return made


def _clip_pattern():
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
