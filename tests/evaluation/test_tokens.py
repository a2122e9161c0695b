"""Words of captions: what Stanford CoreNLP 3.4.1 printed, recorded, and live where it is installed."""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from gitfast.evaluation.tokens import tokenize

from support.captions import random_caption

# A caption, and below it, indented, the tokens of CoreNLP without punctuation.
LINES = (Path(__file__).parent / "treebank.txt").read_text(encoding="utf-8").splitlines()
PUNCTUATION = ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]


@pytest.mark.parametrize(("caption", "tokens"), list(zip(LINES[::2], LINES[1::2], strict=True)))
def test_recorded(caption, tokens):
    assert " ".join(tokenize(caption)) == tokens.strip()


@pytest.mark.parametrize("caption", ["", " ", "\n", ".", "...", "\u200b", "'", "-", "😀"])
def test_nothing_is_left_of_punctuation(caption):
    assert tokenize(caption) == []


def test_long_texts_take_linear_time():
    assert len(tokenize("a-" * 200_000)) >= 1
    assert len(tokenize("a.b " * 100_000)) == 100_000
    assert tokenize("'" * 100_000) == []


@pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="needs Java and pycocoevalcap",
)
def test_plain_captions_live(tmp_path):
    generator = random.Random(0)
    captions = list({random_caption(generator) for _ in range(5000)})
    (tmp_path / "captions.txt").write_text("\n".join(captions), encoding="utf-8")
    spec = importlib.util.find_spec("pycocoevalcap")
    jar = Path(next(iter(spec.submodule_search_locations)), "tokenizer", "stanford-corenlp-3.4.1.jar")
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    done = subprocess.run([*command, tmp_path / "captions.txt"], check=True, capture_output=True, timeout=120)
    lines = done.stdout.decode("utf-8").split("\n")[: len(captions)]
    theirs = [[word for word in line.split() if word not in PUNCTUATION] for line in lines]
    differ = [(caption, line) for caption, line in zip(captions, theirs, strict=True) if tokenize(caption) != line]
    assert len(differ) <= len(captions) // 1000, differ[:5]
