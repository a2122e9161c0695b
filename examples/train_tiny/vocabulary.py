"""The closed vocabulary of the demonstration models, and its tokenizer files."""

from __future__ import annotations

import json
from pathlib import Path

from clips import MOTIONS
from pictures import COLORS, NUMBERS, SHAPES, SIZES, WORDS, plural
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL))
OTHER_WORDS = """
    a an above are at below bottom color do does how in is it large left many no of on or right say shape shapes sign
    small the there these this to top what where word yes
"""
MAX_TOKENS = 64


def words() -> list[str]:
    """Return all tokens, in the order of their ids."""
    plain = {*OTHER_WORDS.split(), *COLORS, *SHAPES, *map(plural, SHAPES), *SIZES, *NUMBERS.values(), *WORDS}
    plain.update(" ".join(MOTIONS).split())
    return [*SPECIAL, "?", *sorted(plain)]


def make_tokenizer() -> Tokenizer:
    """Make an uncased BERT tokenizer: ``[CLS] text [SEP]``."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words())}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write ``tokenizer.json``, ``vocab.txt`` and ``tokenizer_config.json``."""
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(words()) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "model_max_length": MAX_TOKENS,
        "model_input_names": ["input_ids", "attention_mask"],
        **{f"{name.strip('[]').lower()}_token": name for name in SPECIAL},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
