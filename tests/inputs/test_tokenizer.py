"""Token ids and texts against transformers' BertTokenizer, on a small vocabulary and on the real one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitfast.errors import CheckpointError
from gitfast.inputs.tokenizer import StreamDecoder, Tokenizer

from support.paths import ROOT

REAL_VOCAB = Path(
    os.environ.get("GITFAST_BERT_VOCAB") or ROOT.parent / "shared" / "data" / "bert-base-uncased-vocab.txt"
)
SMALL_VOCAB = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "b", "c", "##a", "##b", "##c", "what", "is", "this", "two", "cat", "straw", "##berry", "##s", "don", "t"),
    *("n", "'", ".", ",", "?", "!", "-", "[", "]", "sep", "cls", "s", "m", "re", "ve", "do", "not", "犬", "e", "##e"),
]
SENTENCES = [
    "what is this?",
    "What IS this , exactly ?!",
    "don't, isn't; I'm, we've: it's ' quoted '",
    "strawberrys and cat's",
    "naïve café, Ünïcödé, ﬁ ligature",
    "日本の犬 and кошка",
    "tab\tnewline\ncarriage\rnull\0bell\x07nbsp\u00a0zero\u200bwidth\ufffd",
    "emoji 🐱🐶 and 👩‍👩‍👧",
    "[CLS] is [SEP] this [MASK] [PAD] [UNK]?",
    "a-b_c #hash ##s 3.14159 $5",
    "x" * 101 + " " + "y" * 100,
    "",
    "   ",
]


@pytest.fixture(params=["small", "bert-base-uncased"], scope="module")
def vocab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "small":
        path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
        path.write_text("\n".join(SMALL_VOCAB) + "\n", encoding="utf-8")
        return path
    if not REAL_VOCAB.is_file():
        pytest.skip(f"no vocabulary at {REAL_VOCAB}; set GITFAST_BERT_VOCAB to bert-base-uncased's vocab.txt")
    return REAL_VOCAB


@pytest.fixture(scope="module")
def tokenizer(vocab: Path) -> Tokenizer:
    return Tokenizer.from_vocab(vocab)


@pytest.fixture(scope="module")
def theirs(vocab: Path):
    from transformers import BertTokenizer

    return BertTokenizer(str(vocab))


def their_ids(theirs, text: str) -> list[int]:
    return theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids


@pytest.mark.parametrize("text", SENTENCES, ids=repr)
def test_sentences_match_transformers(text: str, tokenizer: Tokenizer, theirs) -> None:
    assert tokenizer.encode(text) == their_ids(theirs, text)


def test_any_text_matches_transformers(tokenizer: Tokenizer, theirs) -> None:
    @settings(max_examples=300, deadline=None)
    @given(st.text(max_size=60) | st.text(alphabet="abcs'.,?!-[]SEPCL n\t#", max_size=60))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == their_ids(theirs, text)
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    check()


def test_any_ids_decode_as_in_transformers(tokenizer: Tokenizer, theirs) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.integers(0, 40_000), max_size=20), st.booleans())
    def check(ids: list[int], skip: bool) -> None:
        assert tokenizer.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)

    check()


def test_special_tokens_in_a_text_are_text(tokenizer: Tokenizer, theirs) -> None:
    """transformers' default gives the special ids instead, so that a question could end its own prompt."""
    text = "what is [SEP] this [CLS]"
    assert tokenizer.sep_id in theirs(text, add_special_tokens=False).input_ids
    ids = tokenizer.encode(text)
    assert not {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id} & set(ids)
    assert tokenizer.decode(ids) == "what is [ sep ] this [ cls ]"


def test_prompt_is_cls_and_the_question_without_sep(tokenizer: Tokenizer, theirs) -> None:
    assert tokenizer.prompt() == [theirs.cls_token_id]
    assert tokenizer.prompt("") == [theirs.cls_token_id]
    question = "what is this?"
    assert tokenizer.prompt(question) == [theirs.cls_token_id, *theirs(question, add_special_tokens=False).input_ids]
    assert (tokenizer.sep_id, tokenizer.pad_id) == (theirs.sep_token_id, theirs.pad_token_id)


@pytest.mark.parametrize("length", [0, 1, 38, 39, 40, 41, 60])
def test_paper_truncation(length: int, tokenizer: Tokenizer, theirs) -> None:
    """Microsoft's code: the tokenizer truncates to 40, then the payload keeps its last 38."""
    question = " ".join(["what"] * (length // 2) + ["cat"] * (length - length // 2))
    payload = theirs(question, add_special_tokens=False, truncation=True, max_length=40).input_ids
    if len(payload) > 38:
        payload = payload[-38:]
    assert tokenizer.prompt(question, truncation="paper") == [theirs.cls_token_id, *payload]
    assert len(tokenizer.prompt(question)) == 1 + length


def test_bad_arguments(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError, match="text: expected str, got list"):
        tokenizer.encode(["what"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="truncation: expected None or 'paper', got 'left'"):
        tokenizer.prompt("what", truncation="left")  # type: ignore[arg-type]


def test_lone_surrogates_are_dropped(tokenizer: Tokenizer) -> None:
    """They come from undecodable command line arguments; transformers raises TypeError."""
    assert tokenizer.encode("what \ud800 is\udfff") == tokenizer.encode("what is")


def test_streamed_pieces_join_to_the_decoded_text(tokenizer: Tokenizer) -> None:
    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4), max_size=12))
    def check(steps: list[list[int]]) -> None:
        stream = StreamDecoder(tokenizer)
        pieces = [stream.feed(step) for step in steps] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode([i for step in steps for i in step])

    check()


def test_streamed_words_continue_where_they_should(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("two cats, don't!"), tokenizer.sep_id]
    ids[1:2] = tokenizer.encode("strawcss")  # more than one piece in either vocabulary
    stream = StreamDecoder(tokenizer)
    pieces = [stream.feed([i]) for i in ids]
    assert pieces[:2] == ["two", " straw"]
    assert "".join(pieces[1:-6]).startswith(" strawcss")
    assert pieces[-5:] == [" don", " '", " t", "!", ""]


def test_byte_level_vocabularies_stream_whole_characters() -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE({letter: i for i, letter in enumerate([*letters, "[CLS]", "[SEP]", "[PAD]"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = Tokenizer(backend, names)
    ids = tokenizer.encode("é🐱")
    assert len(ids) == 6
    stream = StreamDecoder(tokenizer)
    assert [stream.feed([i]) for i in ids] == ["", "é", "", "", "", "🐱"]
    stream = StreamDecoder(tokenizer)
    assert (stream.feed(ids[:3]), stream.finish()) == ("", "é\ufffd")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
        {"do_lower_case": False, "strip_accents": True},
    ],
    ids=str,
)
def test_folders_that_transformers_saves(options: dict, vocab: Path, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(vocab), **options)
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_bytes(vocab.read_bytes())
    from_vocab = Tokenizer.from_folder(tmp_path)
    for text in SENTENCES:
        expected = their_ids(theirs, text)
        assert ours.encode(text) == expected
        assert from_vocab.encode(text) == expected
        assert ours.decode(expected) == from_vocab.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


def test_saved_padding_and_truncation_do_not_touch_prompts(vocab: Path, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(vocab))
    theirs.backend_tokenizer.enable_padding(length=32)
    theirs.backend_tokenizer.enable_truncation(2)
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.from_folder(tmp_path).prompt("what is this")) == 4


def test_special_tokens_named_by_the_config(tmp_path: Path) -> None:
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "<mask>", "cat"]
    (tmp_path / "vocab.txt").write_text("\r\n".join(tokens))  # no newline at the end, and Windows' in between
    config = {"pad_token": "<pad>", "unk_token": {"content": "<unk>"}, "cls_token": "<s>", "sep_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 2, 3)
    assert tokenizer.prompt("cat dog") == [2, 5, 1]
    assert tokenizer.decode([2, 5, 3]) == "cat"


def test_damaged_folders(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message) as caught:
            Tokenizer.from_folder(tmp_path)
        assert str(tmp_path) in str(caught.value)

    refused("holds neither tokenizer.json nor vocab.txt")
    vocab = tmp_path / "vocab.txt"
    for content, message in [
        (b"", "expected 1 to 200000 tokens, got 0"),
        (b"[PAD]\n[UNK]\n[SEP]\n", r"no token '\[CLS\]'"),
        (b"[PAD]\n\xff\xfe\n", "not UTF-8"),
        (b"a\n" * 200_001, "got 200001"),
    ]:
        vocab.write_bytes(content)
        refused(message)
    for content in ("", "{}", "[1]", '{"version": "1.0", "model": {"type": "WordPiece"}}', "\0" * 64):
        (tmp_path / "tokenizer.json").write_text(content)
        refused("not a tokenizer.json")
    config = tmp_path / "tokenizer_config.json"
    for content, message in [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"cls_token": 3}', "cls_token"),
    ]:
        config.write_text(content)
        refused(message)
