"""Tokenize and detokenize: BERT WordPiece through the ``tokenizers`` library, equal to transformers' tokenizer.

GIT's prompt is ``[CLS]`` and the question's tokens, with no ``[SEP]`` behind them: the model goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gitfast.errors import CheckpointError
from gitfast.inputs.tokenizer_files import TokenizerFiles, library_errors, read_folder, read_vocab

if TYPE_CHECKING:
    import tokenizers

MAX_TEXT_CHARACTERS = 1_000_000  # in one text; no model's prompt has room for as much
# What transformers replaces, in this order, in texts of a tokenizer with clean_up_tokenization_spaces.
_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
_UNSETTLED = re.compile(r" (?:n(?: ?')?|'[vr]?)?\Z")  # an end that these may still replace, with what follows


class Tokenizer:
    """The tokenizer of a checkpoint. Use ``from_folder`` or ``from_vocab``. Immutable and thread-safe.

    Attributes:
        special_tokens: The texts of cls_token, sep_token, pad_token and, from files, unk_token and mask_token.
        cls_id, sep_id, pad_id: Token ids that begin a text, end it and fill a batch (BERT: 101, 102, 0).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        source: str = "tokenizer",
        *,
        hidden_ids: Set[int] = frozenset(),
        clean_up: bool = False,
    ) -> None:
        """Wrap a configured ``tokenizers.Tokenizer``.

        Args:
            backend: Changed in place: no padding, no truncation, special tokens in texts not recognised.
            special_tokens: The texts of cls_token, sep_token and pad_token.
            source: The tokenizer's name in messages.
            hidden_ids: More tokens that ``decode`` leaves out with the special ones.
            clean_up: Join apostrophes to their words where texts are decoded, as transformers does by
                clean_up_tokenization_spaces.
        """
        backend.no_padding()  # training scripts save theirs into tokenizer.json
        backend.no_truncation()
        backend.encode_special_tokens = True  # "[SEP]" in a user's text is text, and never ends the prompt
        self._backend = backend
        self._source = source
        self._hidden_ids = hidden_ids
        self._clean_up = clean_up
        self._vocab_size = 1 + max(backend.get_vocab().values(), default=-1)
        self.special_tokens = dict(special_tokens)
        self.cls_id = self._special_id(special_tokens["cls_token"])
        self.sep_id = self._special_id(special_tokens["sep_token"])
        self.pad_id = self._special_id(special_tokens["pad_token"])

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` or ``vocab.txt``, added tokens, and the options of ``tokenizer_config.json``.

        Raises:
            CheckpointError: neither file is there, or one is damaged or describes no tokenizer of BERT's kind; the
                message names it.
        """
        return cls._from_files(read_folder(Path(folder)))

    @classmethod
    def from_vocab(cls, path: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Build BERT's tokenizer over a ``vocab.txt``: one token a line, the line number is its id.

        Args:
            path: The vocabulary file.
            config: Keys of ``tokenizer_config.json``: do_lower_case, strip_accents, tokenize_chinese_chars, added and
                special tokens. Missing keys take the values of bert-base-uncased.
        """
        return cls._from_files(read_vocab(Path(path), config or {}))

    @classmethod
    def _from_files(cls, files: TokenizerFiles) -> Tokenizer:
        return cls(
            files.backend, files.special_tokens, files.source, hidden_ids=files.hidden_ids, clean_up=files.clean_up
        )

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, added tokens included."""
        return self._vocab_size

    def encode(self, text: str) -> list[int]:
        """Encode a text as token ids, without ``[CLS]`` and ``[SEP]``.

        Equals transformers with ``add_special_tokens=False, split_special_tokens=True``: special tokens spelled
        out in the text are encoded as the punctuation and words they look like. Tokens that were added to the
        vocabulary are recognised, the special ones among them too.

        Raises:
            ValueError: a text of more than a million characters.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected str, got {type(text).__name__}")
        if len(text) > MAX_TEXT_CHARACTERS:
            raise ValueError(f"text: expected at most {MAX_TEXT_CHARACTERS} characters, got {len(text)}")
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # lone surrogates are no characters
        with library_errors(self._source):
            return self._backend.encode(text, add_special_tokens=False).ids

    def prompt(self, text: str | None = None, *, truncation: Literal["paper"] | None = None) -> list[int]:
        """Make a prompt: ``[CLS]`` and the tokens of ``text``. ``None`` is the prompt of a caption.

        Args:
            text: A question, or the beginning of a caption.
            truncation: None keeps every token. "paper" follows Microsoft's code: of the first 40 tokens the last 38.
        """
        ids = [] if text is None else self.encode(text)
        if truncation == "paper":
            ids = ids[:40][-38:]
        elif truncation is not None:
            raise ValueError(f"truncation: expected None or 'paper', got {truncation!r}")
        return [self.cls_id, *ids]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True, clean_up: bool | None = None) -> str:
        """Decode token ids, punctuation joined to its word. Ids outside the vocabulary are skipped.

        Args:
            ids: The tokens.
            skip_special_tokens: Leave ``[CLS]`` and its like out.
            clean_up: "man's" for "man ' s"; None: as tokenizer_config.json says.
        """
        hidden = self._hidden_ids if skip_special_tokens else ()
        known = [i for i in map(int, ids) if 0 <= i < self._vocab_size and i not in hidden]
        with library_errors(self._source):
            text = self._backend.decode(known, skip_special_tokens=skip_special_tokens)
        if self._clean_up if clean_up is None else clean_up:
            for spaced in _CLEAN_UP:
                text = text.replace(spaced, spaced.strip())
        return text

    def is_settled(self, text: str) -> bool:
        """Return whether a decoded text stays as it is when more tokens follow."""
        if text.endswith("\ufffd"):  # a byte-level vocabulary may stop in the middle of a character
            return False
        return not (self._clean_up and _UNSETTLED.search(text))

    def _special_id(self, token: str) -> int:
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"{self._source}: the vocabulary has no token {token!r}")
        return token_id


class StreamDecoder:
    """A decoder of token ids as they come. The pieces joined are ``Tokenizer.decode`` of all ids without special ones.

    A piece continues the text exactly: "straw" and "##berry" come as "straw", "berry", and "." without a space.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = ""

    def feed(self, ids: Sequence[int]) -> str:
        """Return the text that ``ids`` add, possibly empty."""
        self._ids.extend(ids)
        text = self._tokenizer.decode(self._ids)
        return self._advance(text) if self._tokenizer.is_settled(text) else ""

    def finish(self) -> str:
        """Return the text held back: empty unless the ids stopped in the middle of a character or before a "'"."""
        return self._advance(self._tokenizer.decode(self._ids))

    def _advance(self, text: str) -> str:
        piece = text[len(self._sent) :]
        self._sent = text
        return piece
