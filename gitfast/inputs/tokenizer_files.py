"""The tokenizer files of a checkpoint, and the backend of the ``tokenizers`` library that they describe.

The library runs whatever tokenizer.json asks for: chains of replacements that grow without end, tables that make it
panic or abort, tokens that fail only when a text comes. So the file is read here, and only the components that BERT's
tokenizers are made of are built, each of bounded size; anything else is refused when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gitfast.checkpoints.files import is_there, parse_json, read_bytes, read_json
from gitfast.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers

_MAX_FILE_BYTES = 16 << 20  # 200,000 tokens take 8 MB
_MAX_CONTAINERS = 500_000  # objects and lists of its JSON, counted before it is parsed
_MAX_VOCAB_SIZE = 200_000
_MAX_ADDED_TOKENS = 20_000
_MAX_TOKEN_CHARACTERS = 512
_MAX_PREFIX_CHARACTERS = 16
_MAX_WORD_CHARACTERS = 256  # the time of a word grows with its square; BERT takes 100
_MAX_LENGTH = 1 << 20  # tokens that texts are padded or cut to
_MAX_SEQUENCE = 8  # normalizers or pre-tokenizers behind each other
_SPECIAL_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
# Classes of transformers that take tokenizer.json as it is; its others build the normalizer from the configuration.
_VERBATIM_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")


@dataclass(frozen=True)
class AddedToken:
    """A token beside the vocabulary; ``id`` None: the next free one."""

    content: str
    id: int | None = None
    special: bool = False
    normalized: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class _Description:
    """The checked contents of the files. Components are JSON objects as tokenizer.json has them."""

    vocab: dict[str, int]
    unk_token: str
    prefix: str = "##"
    max_word: int = 100
    normalizer: Any = field(default_factory=lambda: {"type": "BertNormalizer"})
    pre_tokenizer: Any = field(default_factory=lambda: {"type": "BertPreTokenizer"})
    decoder: Any = field(default_factory=lambda: {"type": "WordPiece"})
    added: tuple[AddedToken, ...] = ()


@dataclass(frozen=True)
class TokenizerFiles:
    """A ready backend, and the settings that the library does not know.

    Attributes:
        special_tokens: The texts of unk_token, sep_token, pad_token, cls_token and mask_token.
        hidden_ids: Special tokens that were added: they may stand in a text, and are left out of what is decoded.
        source: The files' name in messages.
        clean_up: The clean_up_tokenization_spaces of tokenizer_config.json: true in files of transformers 4.
    """

    backend: tokenizers.Tokenizer
    special_tokens: Mapping[str, str]
    hidden_ids: frozenset[int]
    source: str
    clean_up: bool


def read_folder(folder: Path) -> TokenizerFiles:
    """Read tokenizer.json, or vocab.txt, with tokenizer_config.json and the files of added tokens beside it.

    Raises:
        CheckpointError: neither is there, or a file is damaged or asks for a feature that no BERT tokenizer has.
    """
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file, CheckpointError) if is_there(config_file) else {}
    if is_there(folder / "tokenizer.json"):
        path, read = folder / "tokenizer.json", _read_tokenizer_json
    elif is_there(folder / "vocab.txt"):
        path, read = folder / "vocab.txt", _read_vocab
    else:
        raise CheckpointError(
            f"{folder}: holds neither tokenizer.json nor vocab.txt; gitfast.load takes processor=, a model with them"
        )
    map_file = folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and is_there(map_file):  # written by transformers before version 4.34
        config = {**config, **read_json(map_file, CheckpointError)}
    special_tokens = special_token_texts(config, config_file)
    added = _config_added_tokens(config, config_file, special_tokens)
    added_file = folder / "added_tokens.json"
    if "added_tokens_decoder" not in config and is_there(added_file):
        added = [*_read_added_tokens(added_file, {token.content for token in added if token.special}), *added]
    description = read(path, special_tokens["unk_token"])
    if path.name == "vocab.txt" or config.get("tokenizer_class") not in _VERBATIM_CLASSES:
        description = _configured(description, config, config_file)
    description = replace(description, added=_merged(description.added, added))
    return _built(description, special_tokens, path, _clean_up(config, config_file))


def read_vocab(path: Path, config: Mapping[str, Any]) -> TokenizerFiles:
    """Build BERT's tokenizer over a vocab.txt, with keys of tokenizer_config.json."""
    special_tokens = special_token_texts(config, path)
    description = _configured(_read_vocab(path, special_tokens["unk_token"]), config, path)
    added = _config_added_tokens(config, path, special_tokens)
    return _built(replace(description, added=_merged((), added)), special_tokens, path, _clean_up(config, path))


def special_token_texts(config: Mapping[str, Any], source: str | Path) -> dict[str, str]:
    """Return the special tokens' texts; a config writes one as a string or as an object with its content."""
    return {
        name: _token_text(config.get(name) or default, f"{source}: {name}") for name, default in _SPECIAL_TOKENS.items()
    }


@contextmanager
def library_errors(source: str) -> Iterator[None]:
    """Turn errors of the library into ``CheckpointError``, its panics too, which are no ``Exception``."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{source}: the tokenizers library fails: {error}") from None
        raise


def _token_text(value: Any, what: str) -> str:
    if isinstance(value, Mapping):
        value = value.get("content")
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_TOKEN_CHARACTERS or not _is_unicode(value):
        raise CheckpointError(
            f"{what}: expected a token of 1 to {_MAX_TOKEN_CHARACTERS} characters, got {_brief(value)}"
        )
    return value


def _is_unicode(text: str) -> bool:
    """Return whether no surrogate stands alone in a text: JSON can spell those, the library cannot take them."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _brief(value: Any) -> str:
    return ascii(value if isinstance(value, (int, float, type(None))) else str(value)[:40])


def _read_vocab(path: Path, unk_token: str) -> _Description:
    try:
        text = read_bytes(path, _MAX_FILE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8: {error}") from error
    lines = text.removesuffix("\n").split("\n")  # not splitlines: U+0085 may be in a token
    _check_size(path, len(lines) if text else 0)
    return _Description({line.rstrip(): index for index, line in enumerate(lines)}, unk_token)


def _check_size(path: Path, size: int) -> None:
    if not 0 < size <= _MAX_VOCAB_SIZE:
        raise CheckpointError(f"{path}: expected 1 to {_MAX_VOCAB_SIZE} tokens, got {size}")


def _read_tokenizer_json(path: Path, unk_token: str) -> _Description:
    data = read_bytes(path, _MAX_FILE_BYTES)
    if data.count(b"{") + data.count(b"[") > _MAX_CONTAINERS:
        raise CheckpointError(f"{path}: not a tokenizer.json: more than {_MAX_CONTAINERS} objects and lists")
    values = parse_json(data, f"{path}: not a tokenizer.json", CheckpointError)
    model = values.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: not a tokenizer.json: it has no model")
    if model.get("type", "WordPiece") != "WordPiece":
        raise CheckpointError(
            f"{path}: model: expected WordPiece, as BERT's tokenizers have, got {_brief(model['type'])}"
        )
    added = values.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > _MAX_ADDED_TOKENS:
        raise CheckpointError(f"{path}: added_tokens: expected a list of at most {_MAX_ADDED_TOKENS}")
    post_processor = values.get("post_processor")  # it adds [CLS] and [SEP], which prompts do on their own
    if post_processor is not None:
        _known(post_processor, ("BertProcessing", "TemplateProcessing"), f"{path}: post_processor")
    decoder = values.get("decoder") or {"type": "WordPiece"}
    with library_errors(str(path)):  # here, where the configuration has not replaced any of them
        for component, build in (("normalizer", _normalizer), ("pre_tokenizer", _pre_tokenizer)):
            if values.get(component) is not None:
                build(values[component], f"{path}: {component}")
        _decoder(decoder, f"{path}: decoder")
    _check_lengths(values, path)
    fields = _Fields(model, f"{path}: model")
    return _Description(
        vocab=_vocab(model.get("vocab"), path),
        unk_token=fields.text("unk_token", unk_token),
        prefix=fields.text("continuing_subword_prefix", "##", _MAX_PREFIX_CHARACTERS),
        max_word=fields.number("max_input_chars_per_word", 100, _MAX_WORD_CHARACTERS),
        normalizer=values.get("normalizer"),
        pre_tokenizer=values.get("pre_tokenizer"),
        decoder=decoder,
        added=tuple(_added_token(token, None, f"{path}: added_tokens") for token in added),
    )


def _check_lengths(values: Mapping[str, Any], path: Path) -> None:
    """Check padding and truncation, which are not followed here: transformers reads the same file."""
    padding, truncation = (values.get(name) or {} for name in ("padding", "truncation"))
    for name, part in (("padding", padding), ("truncation", truncation)):
        if not isinstance(part, dict):
            raise CheckpointError(f"{path}: {name}: expected an object or null, got {_brief(part)}")
    strategy = padding.get("strategy")
    lengths = {
        "padding.strategy.Fixed": strategy.get("Fixed") if isinstance(strategy, dict) else None,
        "padding.pad_to_multiple_of": padding.get("pad_to_multiple_of"),
        "truncation.max_length": truncation.get("max_length"),
    }
    for name, length in lengths.items():
        if length is not None and (type(length) is not int or not 0 <= length <= _MAX_LENGTH):
            raise CheckpointError(f"{path}: {name}: expected at most {_MAX_LENGTH} tokens, got {_brief(length)}")


def _vocab(vocab: Any, path: Path) -> dict[str, int]:
    if not isinstance(vocab, dict):
        raise CheckpointError(f"{path}: not a tokenizer.json: model.vocab is not an object of token ids")
    _check_size(path, len(vocab))
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < _MAX_VOCAB_SIZE or not _is_unicode(token):
            raise CheckpointError(f"{path}: model.vocab: token {_brief(token)} has the id {_brief(index)}")
    if len(set(vocab.values())) < len(vocab):
        raise CheckpointError(f"{path}: model.vocab: gives an id to two tokens")
    return vocab


class _Fields:
    """Checked fields of a JSON object."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where

    def flag(self, name: str, default: bool) -> bool:
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self._where}: {name}: expected true or false, got {_brief(value)}")
        return value

    def optional_flag(self, name: str) -> bool | None:
        return None if self._values.get(name) is None else self.flag(name, False)

    def text(self, name: str, default: str, limit: int = _MAX_TOKEN_CHARACTERS) -> str:
        value = self._values.get(name, default)
        if not isinstance(value, str) or len(value) > limit or not _is_unicode(value):
            raise CheckpointError(f"{self._where}: {name}: expected at most {limit} characters, got {_brief(value)}")
        return value

    def number(self, name: str, default: int, limit: int) -> int:
        value = self._values.get(name, default)
        if type(value) is not int or not 0 < value <= limit:
            raise CheckpointError(f"{self._where}: {name}: expected an integer from 1 to {limit}, got {_brief(value)}")
        return value

    def parts(self, name: str) -> list[Any]:
        value = self._values.get(name)
        if not isinstance(value, list) or not 0 < len(value) <= _MAX_SEQUENCE:
            raise CheckpointError(f"{self._where}: {name}: expected a list of 1 to {_MAX_SEQUENCE} components")
        return value


def _known(component: Any, types: tuple[str, ...], where: str) -> str:
    """Return the type of a component, which must be one of ``types``."""
    kind = component.get("type") if isinstance(component, dict) else component
    if not isinstance(kind, str) or kind not in types:
        raise CheckpointError(f"{where}: expected {', '.join(types)}, as BERT's tokenizers have, got {_brief(kind)}")
    return kind


def _normalizer(component: Any, where: str) -> Any:
    from tokenizers import normalizers

    simple = ("Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents")
    kind = _known(component, ("BertNormalizer", "Sequence", *simple), where)
    fields = _Fields(component, where)
    if kind == "Sequence":
        parts = fields.parts("normalizers")
        return normalizers.Sequence([_normalizer(part, where) for part in parts if _known(part, simple, where)])
    if kind in simple:
        return getattr(normalizers, kind)()
    return normalizers.BertNormalizer(
        clean_text=fields.flag("clean_text", True),
        handle_chinese_chars=fields.flag("handle_chinese_chars", True),
        strip_accents=fields.optional_flag("strip_accents"),
        lowercase=fields.flag("lowercase", True),
    )


def _pre_tokenizer(component: Any, where: str) -> Any:
    from tokenizers import pre_tokenizers

    simple = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
    behaviors = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    kind = _known(component, ("Sequence", "Punctuation", *simple), where)
    fields = _Fields(component, where)
    if kind == "Sequence":
        parts = fields.parts("pretokenizers")
        known = ("Punctuation", *simple)
        return pre_tokenizers.Sequence([_pre_tokenizer(part, where) for part in parts if _known(part, known, where)])
    if kind == "Punctuation":
        behavior = _known(component.get("behavior", "Isolated"), behaviors, f"{where}.behavior")
        words = {"MergedWithPrevious": "merged_with_previous", "MergedWithNext": "merged_with_next"}
        return pre_tokenizers.Punctuation(words.get(behavior, behavior.lower()))
    return getattr(pre_tokenizers, kind)()


def _decoder(component: Any, where: str) -> Any:
    from tokenizers import decoders

    _known(component, ("WordPiece",), where)
    fields = _Fields(component, where)
    prefix = fields.text("prefix", "##", _MAX_PREFIX_CHARACTERS)
    return decoders.WordPiece(prefix=prefix, cleanup=fields.flag("cleanup", True))


def _configured(description: _Description, config: Mapping[str, Any], source: Path) -> _Description:
    """Apply the settings of tokenizer_config.json, which win as they do in transformers."""
    fields = _Fields(config, str(source))
    settings: dict[str, Any] = {}
    if "do_lower_case" in config:
        settings["lowercase"] = fields.flag("do_lower_case", True)
    if "strip_accents" in config:
        settings["strip_accents"] = fields.optional_flag("strip_accents")
    if "tokenize_chinese_chars" in config:
        settings["handle_chinese_chars"] = fields.flag("tokenize_chinese_chars", True)
    if not settings:
        return description
    normalizer = description.normalizer
    own = normalizer if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer" else {}
    return replace(description, normalizer={**own, "type": "BertNormalizer", **settings})


def _clean_up(config: Mapping[str, Any], source: Path) -> bool:
    return bool(_Fields(config, str(source)).optional_flag("clean_up_tokenization_spaces"))


def _config_added_tokens(
    config: Mapping[str, Any], source: Path, special_tokens: Mapping[str, str]
) -> list[AddedToken]:
    """Read added tokens of tokenizer_config.json: added_tokens_decoder has ids, additional_special_tokens none."""
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict) or len(decoder) > _MAX_ADDED_TOKENS:
        raise CheckpointError(f"{source}: added_tokens_decoder: expected an object of at most {_MAX_ADDED_TOKENS}")
    added = []
    for key, token in decoder.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise CheckpointError(f"{source}: added_tokens_decoder: expected token ids, got {_brief(key)}")
        added.append(_added_token(token, int(key), f"{source}: added_tokens_decoder"))
    added.sort(key=lambda token: token.id or 0)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    if not isinstance(extra, list) or len(extra) > _MAX_ADDED_TOKENS:
        raise CheckpointError(f"{source}: extra_special_tokens: expected at most {_MAX_ADDED_TOKENS} tokens")
    known = {token.content for token in added} | set(special_tokens.values())
    for value in extra:
        content = _token_text(value, f"{source}: extra_special_tokens")
        if content not in known:
            added.append(AddedToken(content, special=True))
            known.add(content)
    return added


def _read_added_tokens(path: Path, special: set[str]) -> list[AddedToken]:
    """Read added_tokens.json: the ids of tokens by their texts."""
    values = read_json(path, CheckpointError)
    if len(values) > _MAX_ADDED_TOKENS:
        raise CheckpointError(f"{path}: expected at most {_MAX_ADDED_TOKENS} tokens, got {len(values)}")
    added = []
    for content, index in values.items():
        is_special = content in special
        token = {"content": content, "special": is_special, "normalized": not is_special}
        added.append(_added_token(token, index, str(path)))
    return sorted(added, key=lambda token: token.id or 0)


def _added_token(token: Any, index: Any, where: str) -> AddedToken:
    if not isinstance(token, dict):
        raise CheckpointError(f"{where}: expected an object for each token, got {_brief(token)}")
    index = token.get("id") if index is None else index
    if type(index) is not int or not 0 <= index < _MAX_VOCAB_SIZE:
        raise CheckpointError(f"{where}: expected an id below {_MAX_VOCAB_SIZE}, got {_brief(index)}")
    fields = _Fields(token, where)
    special = fields.flag("special", False)
    return AddedToken(
        content=_token_text(token.get("content"), where),
        id=index,
        special=special,
        normalized=fields.flag("normalized", not special),
        single_word=fields.flag("single_word", False),
        lstrip=fields.flag("lstrip", False),
        rstrip=fields.flag("rstrip", False),
    )


def _merged(first: tuple[AddedToken, ...], then: list[AddedToken]) -> tuple[AddedToken, ...]:
    """Merge both lists, one token per content; the later one's flags win, an id that either gives stays."""
    merged = {token.content: token for token in first}
    for token in then:
        known = merged.get(token.content)
        merged[token.content] = replace(token, id=known.id) if known and token.id is None else token
    return tuple(merged.values())


def _added_ids(description: _Description, path: Path) -> dict[str, int]:
    """Return the ids of added tokens: the vocabulary's where it has them, as declared, or the next free ones."""
    vocab = description.vocab
    ids: dict[str, int] = {token.content: vocab[token.content] for token in description.added if token.content in vocab}
    taken = set(vocab.values())
    following = max(taken, default=-1) + 1
    for token in description.added:
        if token.content in ids:
            continue
        index = following if token.id is None else token.id
        if index in taken:
            raise CheckpointError(f"{path.parent}: added token {_brief(token.content)} has the id {index} of another")
        ids[token.content] = index
        taken.add(index)
        following = max(following, index + 1)
    _check_size(path, following)
    return ids


def _built(description: _Description, special_tokens: Mapping[str, str], path: Path, clean_up: bool) -> TokenizerFiles:
    ids = _added_ids(description, path)
    controls = set(special_tokens.values())
    if description.unk_token not in description.vocab:
        raise CheckpointError(f"{path}: the vocabulary has no token {_brief(description.unk_token)}, the unk_token")
    with library_errors(str(path)):
        backend = _backend(description, description.vocab, controls, path)
        if any(backend.token_to_id(content) != index for content, index in ids.items()):  # ids with gaps between
            backend = _backend(description, {**description.vocab, **ids}, controls, path)
    hidden = frozenset(ids[t.content] for t in description.added if t.special and t.content not in controls)
    return TokenizerFiles(backend, special_tokens, hidden, str(path), clean_up)


def _backend(description: _Description, vocab: dict[str, int], controls: set[str], path: Path) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken as Added
    from tokenizers import Tokenizer, models

    backend = Tokenizer(
        models.WordPiece(
            vocab,
            unk_token=description.unk_token,
            max_input_chars_per_word=description.max_word,
            continuing_subword_prefix=description.prefix,
        )
    )
    if description.normalizer is not None:
        backend.normalizer = _normalizer(description.normalizer, f"{path}: normalizer")
    if description.pre_tokenizer is not None:
        backend.pre_tokenizer = _pre_tokenizer(description.pre_tokenizer, f"{path}: pre_tokenizer")
    backend.decoder = _decoder(description.decoder, f"{path}: decoder")
    declared = {token.content for token in description.added}
    backend.add_special_tokens(
        [Added(token, normalized=False, special=True) for token in controls if token in vocab and token not in declared]
    )
    for token in sorted(description.added, key=lambda token: _MAX_VOCAB_SIZE if token.id is None else token.id):
        flags: Callable[[str], Any] = token.__dict__.__getitem__
        # Added tokens may be written in a prompt, the special ones too; [SEP] and its like may not.
        special = token.content in controls
        added = Added(
            token.content,
            special=special,
            **{name: flags(name) for name in ("normalized", "single_word", "lstrip", "rstrip")},
        )
        backend.add_special_tokens([added]) if special else backend.add_tokens([added])
    return backend
