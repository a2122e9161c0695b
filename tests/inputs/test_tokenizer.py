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
from support.tiers import examples

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
    @settings(max_examples=examples(300), deadline=None)
    @given(st.text(max_size=60) | st.text(alphabet="abcs'.,?!-[]SEPCL n\t#", max_size=60))
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert ids == their_ids(theirs, text)
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    check()


def test_any_ids_decode_as_in_transformers(tokenizer: Tokenizer, theirs) -> None:
    @settings(max_examples=examples(200), deadline=None)
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
    @settings(max_examples=examples(200), deadline=None)
    @given(st.lists(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4), max_size=12))
    def check(steps: list[list[int]]) -> None:
        stream = StreamDecoder(tokenizer)
        pieces = [stream.feed(step) for step in steps] + [stream.finish()]
        assert "".join(pieces) == tokenizer.decode([i for step in steps for i in step])

    check()


@pytest.mark.parametrize("clean_up", [None, False, True])
def test_apostrophes_are_joined_where_the_file_says(clean_up: bool | None, vocab: Path, tmp_path: Path) -> None:
    """Files that transformers 4 saved say so; its version 5 follows them."""
    from transformers import BertTokenizer

    save(tmp_path, "tokenizer_config.json", {"clean_up_tokenization_spaces": clean_up})
    (tmp_path / "vocab.txt").write_bytes(vocab.read_bytes())
    theirs = BertTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.from_folder(tmp_path)
    any_id = st.integers(0, ours.vocab_size - 1) | st.sampled_from(ours.encode("' n t s m ve re . , ? do n ' t ' a"))

    @settings(max_examples=examples(200), deadline=None)
    @given(st.lists(st.lists(any_id, max_size=2), max_size=12))
    def check(steps: list[list[int]]) -> None:
        ids = [i for step in steps for i in step]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        stream = StreamDecoder(ours)
        pieces = [stream.feed(step) for step in steps] + [stream.finish()]
        assert "".join(pieces) == ours.decode(ids)

    check()
    ids = ours.encode("don't")
    assert ours.decode(ids) == ("don't" if clean_up else "don ' t")
    assert (ours.decode(ids, clean_up=True), ours.decode(ids, clean_up=False)) == ("don't", "don ' t")
    stream = StreamDecoder(ours)
    assert [stream.feed([i]) for i in ids] == (["don", "", "'t"] if clean_up else ["don", " '", " t"])


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


def test_spaces_behind_the_tokens_of_a_vocabulary(tmp_path: Path) -> None:
    from transformers import BertTokenizer

    tokens = ["[PAD]", "[UNK]", "[CLS] ", "[SEP]\t", "[MASK]", "cat ", "\u00a0", "dog\u3000", " fox", "##s\r"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8", newline="\n")
    ours, theirs = Tokenizer.from_folder(tmp_path), BertTokenizer(str(tmp_path / "vocab.txt"))
    assert ours.encode("cats dog fox") == their_ids(theirs, "cats dog fox") == [5, 9, 7, 1]
    assert ours.cls_id == theirs.cls_token_id == 2
    assert ours.decode([5, 9, 6, 7]) == theirs.decode([5, 9, 6, 7])


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


def save(folder: Path, name: str, values: object) -> None:
    (folder / name).write_text(json.dumps(values))


def tokenizer_json(folder: Path, **options: bool | None) -> dict:
    """The content of the tokenizer.json that transformers saves, and nothing else in the folder."""
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("\n".join(SMALL_VOCAB))
    BertTokenizer(str(folder / "vocab.txt"), **options).backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    return json.loads((folder / "tokenizer.json").read_text())


SIZE = len(SMALL_VOCAB)
OBJECT = {"lstrip": False, "rstrip": False, "single_word": False}
NEW_WORD = {"__type": "AddedToken", "content": "New Word", "special": True, "normalized": False, **OBJECT}
ADDED = [
    ("added_tokens.json", {"<loc>": SIZE, "New Word": SIZE + 1}),
    ("tokenizer_config.json", {"additional_special_tokens": ["<loc>", "New Word"]}),
    ("tokenizer_config.json", {"extra_special_tokens": ["<loc>", NEW_WORD]}),
    ("special_tokens_map.json", {"additional_special_tokens": ["<loc>", "New Word"]}),
    (
        "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(SIZE + 1): {"content": "New Word", "special": False, "normalized": True, **OBJECT},
                str(SIZE): {"content": "<loc>", "special": True, "normalized": False, **OBJECT},
                "0": {"content": "[PAD]", "special": True, "normalized": False, **OBJECT},
            }
        },
    ),
]


@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize(("name", "values"), ADDED)
def test_added_tokens_beside_the_vocabulary(form: str, name: str, values: dict, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save(tmp_path, "config.json", {"model_type": "git"})
    if form == "vocab.txt":
        (tmp_path / form).write_text("\n".join(SMALL_VOCAB))
    else:
        tokenizer_json(tmp_path)
    save(tmp_path, name, values)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    assert (ours.vocab_size, ours.cls_id, ours.pad_id) == (SIZE + 2, 2, 0)
    for text in ("what <loc>", "a<loc>b New Word cat", "new word, NEW WORD", "<loc><loc>"):
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == ids
        assert {SIZE, SIZE + 1} & set(ids) or "New Word" not in text
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_ids_with_gaps_are_kept(tmp_path: Path) -> None:
    """transformers gives the next free id instead, whose embedding is another token's."""
    (tmp_path / "vocab.txt").write_text("\n".join(SMALL_VOCAB))
    save(tmp_path, "added_tokens.json", {"<loc>": SIZE + 7, "<box>": SIZE + 3})
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("what <loc> <box> is") == [*tokenizer.encode("what"), SIZE + 7, SIZE + 3, 12]
    assert tokenizer.decode([SIZE + 7, 5, SIZE + 3, SIZE + 4, 10**9, -1]) == "<loc> a <box>"
    assert tokenizer.vocab_size == SIZE + 8


def test_an_id_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(SMALL_VOCAB))
    save(tmp_path, "added_tokens.json", {"<loc>": 7})
    with pytest.raises(CheckpointError, match="added token '<loc>' has the id 7 of another"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("saved", [{}, {"do_lower_case": False}])
@pytest.mark.parametrize(
    "config",
    [
        {"do_lower_case": False},
        {"do_lower_case": True},
        {"strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_options_beside_tokenizer_json_win(saved: dict, config: dict, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save(tmp_path, "config.json", {"model_type": "git"})
    tokenizer_json(tmp_path, **saved)
    full = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True} | saved | config
    save(tmp_path, "tokenizer_config.json", full)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    save(tmp_path, "tokenizer_config.json", config)  # what it does not say stays as tokenizer.json has it
    ours = Tokenizer.from_folder(tmp_path)
    for text in SENTENCES:
        assert ours.encode(text) == their_ids(theirs, text)


def component(**changes: object):
    def change(values: dict) -> None:
        values.update(changes)

    return change


def model(**changes: object):
    def change(values: dict) -> None:
        values["model"].update(changes)

    return change


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (component(normalizer=REPLACE), "normalizer: expected BertNormalizer, .*, got 'Replace'"),
        (component(normalizer={"type": "Sequence", "normalizers": [REPLACE] * 8}), "got 'Replace'"),
        (component(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}] * 9}), "list of 1 to 8"),
        (component(normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence"}]}), "got 'Sequence'"),
        (component(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "got 'Precompiled'"),
        (component(normalizer={"type": "Prepend", "prepend": "x" * 1000}), "got 'Prepend'"),
        (component(normalizer={"type": "BertNormalizer", "lowercase": 1}), "lowercase: expected true or false, got 1"),
        (component(normalizer=5), "normalizer: .*got 5"),
        (component(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a*)*b"}}), "pre_tokenizer: .*got 'Split'"),
        (component(pre_tokenizer={"type": "ByteLevel"}), "got 'ByteLevel'"),
        (component(pre_tokenizer={"type": "Punctuation", "behavior": "x"}), "behavior: expected Isolated.* got 'x'"),
        (component(decoder=REPLACE), "decoder: expected WordPiece, .* got 'Replace'"),
        (component(decoder={"type": "WordPiece", "prefix": "#" * 17}), "prefix: expected at most 16 characters"),
        (component(post_processor={"type": "Sequence", "processors": []}), "post_processor: .* got 'Sequence'"),
        (component(added_tokens=[{"id": 1}]), "added_tokens: expected a token"),
        (component(added_tokens=[{"id": 10**9, "content": "x"}]), "expected an id below 200000, got 1000000000"),
        (component(added_tokens=[{"id": 99, "content": ""}]), "expected a token of 1 to 512 characters, got ''"),
        (component(added_tokens=[{"id": 99, "content": "x" * 513}]), "expected a token of 1 to 512 characters"),
        (component(added_tokens={"x": 3}), "added_tokens: expected a list"),
        (component(model={"type": "BPE", "vocab": {}, "merges": []}), "model: expected WordPiece, .* got 'BPE'"),
        (component(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9}), "got 'Unigram'"),
        (model(unk_token="<absent>"), "the vocabulary has no token '<absent>', the unk_token"),
        (model(unk_token=None), "unk_token: expected at most 512 characters, got None"),
        (model(max_input_chars_per_word=10**9), "max_input_chars_per_word: expected an integer from 1 to 256"),
        (model(max_input_chars_per_word=0), "expected an integer from 1 to 256, got 0"),
        (model(continuing_subword_prefix="#" * 17), "continuing_subword_prefix: expected at most 16"),
        (model(vocab={"[UNK]": 0, "\ud800": 1}), "token .* has the id 1"),
        (model(vocab={"[UNK]": 0, "a": 10**12}), "token 'a' has the id 1000000000000"),
        (model(vocab={"[UNK]": 0, "a": 0}), "gives an id to two tokens"),
        (model(vocab={"[UNK]": 0.5}), r"has the id 0\.5"),
        (model(vocab=[["a", 0]]), "not an object of token ids"),
    ],
)
def test_what_no_bert_tokenizer_has_is_refused(change, message: str, tmp_path: Path) -> None:
    values = tokenizer_json(tmp_path)
    change(values)
    save(tmp_path, "tokenizer.json", values)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: .*{message}"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("normalizer", REPLACE, "normalizer: expected BertNormalizer"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "got 'Precompiled'"),
        ("padding", {"strategy": {"Fixed": 10**9}, "pad_id": 0}, "padding.strategy.Fixed: expected at most"),
        ("padding", {"strategy": "BatchLongest", "pad_to_multiple_of": 10**12}, "padding.pad_to_multiple_of: expected"),
        ("padding", [1], "padding: expected an object or null"),
        ("truncation", {"max_length": -1}, "truncation.max_length: expected at most"),
        ("truncation", "x", "truncation: expected an object or null"),
    ],
)
def test_what_is_overridden_is_checked_too(name: str, value: object, message: str, tmp_path: Path) -> None:
    save(tmp_path, "tokenizer.json", tokenizer_json(tmp_path) | {name: value})
    save(tmp_path, "tokenizer_config.json", {"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: {message}|tokenizer\.json: .*{message}"):
        Tokenizer.from_folder(tmp_path)


def test_saved_padding_and_truncation_are_no_fault(tmp_path: Path) -> None:
    values = tokenizer_json(tmp_path)
    values["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": 8, "pad_id": 0}
    values["truncation"] = {"max_length": 512, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    save(tmp_path, "tokenizer.json", values)
    assert len(Tokenizer.from_folder(tmp_path).prompt("what is this?")) == 5


def test_a_tokenizer_json_of_many_objects_is_refused_unparsed(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b'{"model": [' + b"[]," * 600_000 + b"[]]}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: .*more than 500000 objects and lists"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [
        (None, None),
        ({"type": "Lowercase"}, {"type": "Whitespace"}),
        (
            {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]},
            {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Punctuation"}]},
        ),
        ({"type": "NFKC"}, {"type": "Punctuation", "behavior": "MergedWithPrevious"}),
    ],
)
def test_components_that_may_be_do_what_the_library_does(normalizer, pre_tokenizer, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Backend

    values = tokenizer_json(tmp_path) | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    save(tmp_path, "tokenizer.json", values)
    theirs = Backend.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True
    ours = Tokenizer.from_folder(tmp_path)
    for text in SENTENCES:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_lower_case": "yes"}, "do_lower_case: expected true or false, got 'yes'"),
        ({"do_lower_case": None}, "do_lower_case: expected true or false, got None"),
        ({"clean_up_tokenization_spaces": 1}, "clean_up_tokenization_spaces: expected true or false, got 1"),
        ({"strip_accents": 10**400}, "strip_accents: expected true or false, got inf"),
        ({"tokenize_chinese_chars": []}, "tokenize_chinese_chars: expected true or false"),
        ({"unk_token": "\ud800"}, "unk_token: expected a token of 1 to 512 characters, got .*ud800"),
        ({"cls_token": "x" * 513}, "cls_token: expected a token"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder: expected an object"),
        ({"added_tokens_decoder": {"x": {"content": "y"}}}, "added_tokens_decoder: expected token ids, got 'x'"),
        ({"added_tokens_decoder": {"99": "y"}}, "expected an object for each token, got 'y'"),
        ({"added_tokens_decoder": {"99": {"content": "y", "lstrip": 2}}}, "lstrip: expected true or false, got 2"),
        ({"additional_special_tokens": "abc"}, "extra_special_tokens: expected at most"),
        ({"additional_special_tokens": [7]}, "extra_special_tokens: expected a token of 1 to 512 characters"),
    ],
)
def test_wrong_types_in_the_config(config: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(SMALL_VOCAB))
    save(tmp_path, "tokenizer_config.json", config)
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: .*{message}"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"]
)
def test_only_regular_files_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(SMALL_VOCAB))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name}: expected a regular file, got a pipe"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match=rf"{name}: a Git LFS pointer"):
        Tokenizer.from_folder(tmp_path)


def test_panics_of_the_library_are_errors() -> None:
    class PanicException(BaseException):  # as pyo3 derives its own
        pass

    class Backend:
        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise PanicException("index out of bounds")

        decode = encode

    tokenizer = Tokenizer.__new__(Tokenizer)
    tokenizer._backend, tokenizer._source = Backend(), "vocab.txt"  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match=r"vocab\.txt: the tokenizers library fails: index out of bounds"):
        tokenizer.encode("a")


def test_a_text_of_any_length_is_refused_before_it_is_encoded(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("a " * 1_000)) == 1_000
    with pytest.raises(ValueError, match="text: expected at most 1000000 characters, got 5000000"):
        tokenizer.prompt("what " * 1_000_000, truncation="paper")
