"""``GitTokenizer``: the call and the attributes of transformers' tokenizers that GIT's recipes use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gitfast import arguments
from gitfast.checkpoints.files import read_json
from gitfast.errors import CheckpointError
from gitfast.inputs.tokenizer import Tokenizer

_PADDING = {False: None, "do_not_pad": None, True: "longest", "longest": "longest", "max_length": "max_length"}
_TRUNCATION = {False: False, "do_not_truncate": False, True: True, "longest_first": True, "only_first": True}


class GitTokenizer:
    """A tokenizer like transformers' BertTokenizer: ``[SEP]`` inside a text is the token of that name."""

    model_input_names = ("input_ids", "attention_mask")
    # Arguments of __call__ beside texts.
    options = frozenset(
        {
            "add_special_tokens",
            "padding",
            "padding_side",
            "truncation",
            "max_length",
            "pad_to_multiple_of",
            "return_attention_mask",
        }
    )

    def __init__(self, tokenizer: Tokenizer, max_length: int | None = None) -> None:
        import tokenizers

        self._tokenizer = tokenizer
        self._backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
        self._backend.encode_special_tokens = False
        self.model_max_length = max_length
        self.cls_token_id = self.bos_token_id = tokenizer.cls_id
        self.sep_token_id = self.eos_token_id = tokenizer.sep_id
        self.pad_token_id = tokenizer.pad_id
        self.cls_token, self.sep_token, self.pad_token = (
            self._backend.id_to_token(i) for i in (self.cls_token_id, self.sep_token_id, self.pad_token_id)
        )
        self.padding_side = "right"

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: Tokenizer) -> GitTokenizer:
        """Read a folder's tokenizer, with the ``model_max_length`` of tokenizer_config.json."""
        file = folder / "tokenizer_config.json"
        limit = read_json(file, CheckpointError).get("model_max_length") if file.is_file() else None
        return cls(tokenizer, limit if isinstance(limit, int) and limit < 10**9 else None)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def __len__(self) -> int:
        return self.vocab_size

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encode one text as token ids."""
        if not isinstance(text, str):
            raise TypeError(f"text: expected str, got {type(text).__name__}")
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [self.cls_token_id, *ids, self.sep_token_id] if add_special_tokens else ids

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool | str = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool = True,
        return_tensors: str | None = None,
    ) -> dict[str, Any]:
        """Return input_ids and attention_mask: flat for one text, (R, L) for a list or with ``return_tensors``.

        Args:
            text: One text or a list.
            add_special_tokens: ``[CLS]`` before and ``[SEP]`` behind each text, as for training; a question that is to
                be answered has no ``[SEP]``: pass ``[[cls_token_id, *ids]]`` to ``generate``.
            padding: True or "longest": up to the longest; "max_length": up to ``max_length``.
            padding_side: "right" or "left"; None takes the attribute of this name.
            truncation: True, "longest_first" or "only_first": cut texts at ``max_length`` tokens.
            max_length: Special tokens included; None takes ``model_max_length``.
            pad_to_multiple_of: Round the padded length up.
            return_attention_mask: Return attention_mask too.
            return_tensors: "pt", "np" or None.

        Raises:
            ValueError: an argument that cannot be, or texts of different lengths that are to be one tensor.
        """
        side = self.padding_side if padding_side is None else padding_side
        arguments.choice("padding_side", side, ("left", "right"))
        if padding not in _PADDING:
            raise ValueError(f"padding: expected True, False, 'longest', 'max_length' or 'do_not_pad', got {padding!r}")
        if truncation not in _TRUNCATION:
            raise ValueError(
                f"truncation: expected True, False, 'longest_first', 'only_first' or 'do_not_truncate', "
                f"got {truncation!r}"
            )
        limit = self.model_max_length if max_length is None else max_length
        specials = 2 if add_special_tokens else 0
        if limit is not None and (_TRUNCATION[truncation] or _PADDING[padding] == "max_length") and limit < specials:
            raise ValueError(f"max_length: expected at least the {specials} special tokens, got {limit}")
        rows = [self.encode(t, False) for t in ([text] if isinstance(text, str) else text)]
        if _TRUNCATION[truncation] and limit is not None:
            rows = [row[: limit - specials] for row in rows]
        if add_special_tokens:
            rows = [[self.cls_token_id, *row, self.sep_token_id] for row in rows]
        length = self._padded_length(rows, _PADDING[padding], limit, pad_to_multiple_of)
        ids = [_fill(row, length, self.pad_token_id, side) for row in rows]
        masks = [_fill([1] * len(row), length, 0, side) for row in rows]
        found = {"input_ids": ids, "attention_mask": masks} if return_attention_mask else {"input_ids": ids}
        if return_tensors is None:
            return {name: values[0] for name, values in found.items()} if isinstance(text, str) else found
        if len({len(row) for row in ids}) > 1:
            raise ValueError(f"text: lengths {sorted({len(row) for row in ids})} differ; padding=True fills them")
        if return_tensors == "pt":
            return {name: torch.tensor(values, dtype=torch.long) for name, values in found.items()}
        return {name: np.asarray(values, dtype=np.int64) for name, values in found.items()}

    def _padded_length(
        self, rows: list[list[int]], padding: str | None, limit: int | None, multiple: int | None
    ) -> int:
        longest = max(map(len, rows), default=0)
        if padding is None:
            return 0
        length = limit if padding == "max_length" and limit is not None else longest
        return -(-length // multiple) * multiple if multiple else length

    def tokenize(self, text: str) -> list[str]:
        """Split one text into tokens."""
        return self.convert_ids_to_tokens(self.encode(text, add_special_tokens=False))

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """Decode one row of token ids as a text, several as a list of texts.

        Args:
            token_ids: A list, array or tensor (L,) or (R, L), or one id.
            skip_special_tokens: Leave ``[CLS]`` and its like out.
            clean_up_tokenization_spaces: "man's" for "man ' s"; None: as tokenizer_config.json says. Other punctuation
                is always joined to its word.
        """
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        if ids and (hasattr(ids[0], "__len__") or getattr(ids[0], "ndim", 0)):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        return self._tokenizer.decode(
            ids, skip_special_tokens=skip_special_tokens, clean_up=clean_up_tokenization_spaces
        )

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """Decode rows of token ids; a single row is a batch of one. See ``decode``."""
        found = self.decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)
        return [found] if isinstance(found, str) and len(sequences) else list(found)

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """Look up the texts of token ids; None stands for ids outside the vocabulary."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        return self._backend.id_to_token(ids) if isinstance(ids, int) else [self._backend.id_to_token(i) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Look up ids of tokens by their text; those outside the vocabulary get the unknown token's id."""
        if isinstance(tokens, str):
            found = self._backend.token_to_id(tokens)
            return self._backend.token_to_id("[UNK]") if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]


def _fill(row: list[int], length: int, value: int, side: str) -> list[int]:
    pads = [value] * (length - len(row))
    return [*pads, *row] if side == "left" else [*row, *pads]
