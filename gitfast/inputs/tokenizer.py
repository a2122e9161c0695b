"""Text to token ids and back: BERT WordPiece through the ``tokenizers`` library, equal to transformers' tokenizer.

GIT's prompt is ``[CLS]`` and the question's tokens, with no ``[SEP]`` behind them: the model goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gitfast.checkpoints.config import read_json
from gitfast.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers

_MAX_FILE_BYTES = 64_000_000
_MAX_VOCAB_SIZE = 200_000
_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}


class Tokenizer:
    """The tokenizer of a checkpoint. Use ``from_folder`` or ``from_vocab``. Immutable and thread-safe.

    Attributes:
        cls_id, sep_id, pad_id: Token ids that begin a text, end it and fill a batch (BERT: 101, 102, 0).
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str], source: str = "tokenizer"):
        """Wrap a configured ``tokenizers.Tokenizer``; ``special_tokens`` maps cls_token, ... to their texts."""
        backend.no_padding()  # training scripts save theirs into tokenizer.json
        backend.no_truncation()
        backend.encode_special_tokens = True  # "[SEP]" in a user's text is text, and never ends the prompt
        self._backend = backend
        self.cls_id = self._special_id(special_tokens["cls_token"], source)
        self.sep_id = self._special_id(special_tokens["sep_token"], source)
        self.pad_id = self._special_id(special_tokens["pad_token"], source)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json``, or ``vocab.txt`` with the options of ``tokenizer_config.json``.

        Raises:
            CheckpointError: neither file is there, or one is damaged; the message names it.
        """
        folder = Path(folder)
        config_file = folder / "tokenizer_config.json"
        config = read_json(config_file, CheckpointError) if config_file.is_file() else {}
        special_tokens = _special_tokens(config, config_file)
        if (folder / "tokenizer.json").is_file():
            return cls(_read_tokenizer_json(folder / "tokenizer.json"), special_tokens, str(folder))
        if (folder / "vocab.txt").is_file():
            return cls.from_vocab(folder / "vocab.txt", config)
        raise CheckpointError(f"{folder}: holds neither tokenizer.json nor vocab.txt")

    @classmethod
    def from_vocab(cls, path: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
        """Build BERT's tokenizer over a ``vocab.txt``: one token a line, the line number is its id.

        Args:
            path: The vocabulary file.
            config: Keys of ``tokenizer_config.json``: do_lower_case, strip_accents, tokenize_chinese_chars and the
                special tokens. Missing keys take the values of bert-base-uncased.
        """
        config = config or {}
        special_tokens = _special_tokens(config, path)
        return cls(_build_bert(_read_vocab(Path(path)), config, special_tokens), special_tokens, str(path))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without ``[CLS]`` and ``[SEP]``.

        Equals transformers with ``add_special_tokens=False, split_special_tokens=True``: special tokens spelled
        out in the text are encoded as the punctuation and words they look like.
        """
        if not isinstance(text, str):
            raise TypeError(f"text: expected str, got {type(text).__name__}")
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")  # lone surrogates are no characters
        return self._backend.encode(text, add_special_tokens=False).ids

    def prompt(self, text: str | None = None, *, truncation: Literal["paper"] | None = None) -> list[int]:
        """``[CLS]`` and the tokens of ``text``: what the decoder goes on from. ``None`` is the prompt of a caption.

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

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, punctuation joined to its word. Ids outside the vocabulary are skipped."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def _special_id(self, token: str, source: str) -> int:
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"{source}: the vocabulary has no token {token!r}")
        return token_id


class StreamDecoder:
    """Decodes token ids as they come. The pieces joined are ``Tokenizer.decode`` of all ids, special tokens skipped.

    A piece continues the text exactly: "straw" and "##berry" come as "straw", "berry", and "." without a space.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = ""

    def feed(self, ids: Sequence[int]) -> str:
        """The text that ``ids`` add, possibly empty."""
        self._ids.extend(ids)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd"):  # a byte-level vocabulary may stop in the middle of a character
            return ""
        return self._advance(text)

    def finish(self) -> str:
        """What was held back: empty unless the ids stopped in the middle of a character."""
        return self._advance(self._tokenizer.decode(self._ids))

    def _advance(self, text: str) -> str:
        piece = text[len(self._sent) :]
        self._sent = text
        return piece


def _special_tokens(config: Mapping[str, Any], source: str | Path) -> dict[str, str]:
    """The special tokens' texts; a config writes one as a string or as an object with its content."""
    tokens = {}
    for name, default in _SPECIAL_TOKENS.items():
        value = config.get(name) or default
        if isinstance(value, Mapping):
            value = value.get("content")
        if not isinstance(value, str):
            raise CheckpointError(f"{source}: {name}: expected a string, got {value!r}")
        tokens[name] = value
    return tokens


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_buffer(_read_file(path))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{path}: not a tokenizer.json: {error}") from error
    _check_vocab_size(path, backend.get_vocab_size())
    return backend


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        text = _read_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8: {error}") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")  # not splitlines: U+0085 may be a token
    _check_vocab_size(path, len(lines) if text else 0)
    return {token: index for index, token in enumerate(lines)}


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: expected at most {_MAX_FILE_BYTES} bytes")
    return data


def _check_vocab_size(path: Path, size: int) -> None:
    if not 0 < size <= _MAX_VOCAB_SIZE:
        raise CheckpointError(f"{path}: expected 1 to {_MAX_VOCAB_SIZE} tokens, got {size}")


def _build_bert(
    vocab: dict[str, int], config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.WordPiece(vocab, unk_token=special_tokens["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    known = [token for token in special_tokens.values() if token in vocab]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in known])
    return backend
