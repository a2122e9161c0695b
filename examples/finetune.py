"""Teach the bundled model words it has never read, and run the result without torch.

    python examples/finetune.py [--steps 300] [--folder finetuned]

The words are new to the vocabulary too: it grows, and with it the embeddings and the output head. Old pictures are
mixed in, so that what the model knew is not forgotten.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import gitfast
from gitfast.checkpoints import hub
from gitfast.compat import GitForCausalLM, GitProcessor

sys.path.insert(0, str(Path(__file__).resolve().parent / "train_tiny"))
from pictures import COLORS, FONTS, WORDS, Word, draw, make_picture

NEW_WORDS = ("pizza", "robot", "yoga")
BATCH_SIZE = 16


def sign(rng: np.random.Generator, size: tuple[int, int] = (96, 96)) -> tuple[Image.Image, str]:
    """Draw a picture of a new word, and return it with its caption."""
    word, color = (str(rng.choice(choices)) for choices in (NEW_WORDS, list(COLORS)))
    width, font = rng.uniform(0.66, 0.92), FONTS[rng.integers(len(FONTS))]
    x = rng.uniform(0.03 + width / 2, 0.97 - width / 2)
    picture = draw([Word(word, color, font, x, rng.uniform(0.3, 0.7), width)], size, rng)
    return picture, f"the word {word} in {color}"


def batch(rng: np.random.Generator) -> tuple[list[Image.Image], list[str]]:
    """Make a batch: half signs with new words, half pictures of the kind the model was trained on."""
    old = [make_picture(int(rng.integers(1 << 30)), "train") for _ in range(BATCH_SIZE // 2)]
    pairs = [sign(rng) for _ in range(BATCH_SIZE // 2)] + [(picture.image, picture.caption) for picture in old]
    return [image for image, _ in pairs], [caption for _, caption in pairs]


def grow_vocabulary(source: str, folder: Path) -> None:
    """Write the model ``source`` into ``folder`` with ``NEW_WORDS`` behind its vocabulary."""
    model = GitForCausalLM.from_pretrained(source, dtype="float32")
    words = (hub.resolve(source) / "vocab.txt").read_text(encoding="utf-8").split()
    vocabulary = [*words, *(word for word in NEW_WORDS if word not in words)]
    model.resize_token_embeddings(len(vocabulary), mean_resizing=False)
    known = [words.index(word) for word in WORDS]
    head = model.get_output_embeddings()
    with torch.no_grad():  # new words start as the mean of the printed words the model knows
        for values in (model.get_input_embeddings().weight, head.weight, head.bias):
            values[len(words) :] = values[known].mean(0)
    model.save_pretrained(folder)
    GitProcessor.from_pretrained(source).save_pretrained(folder)
    (folder / "tokenizer.json").unlink()  # it has the old vocabulary; vocab.txt is enough
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")


def train(folder: Path, steps: int) -> None:
    """Fine-tune the model in ``folder`` and save it there."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    processor, model = GitProcessor.from_pretrained(folder), GitForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=7e-4, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=steps)
    for step in range(steps):
        images, captions = batch(rng)
        inputs = processor(images, captions, padding=True, return_tensors="pt")
        labels = inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)
        loss = model(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)


def accuracy(model: gitfast.Model, pictures: list[tuple[Image.Image, str]]) -> float:
    """Return the share of captions that are exactly right."""
    captions = model.caption([image for image, _ in pictures])
    return float(np.mean([str(c) == truth for c, (_, truth) in zip(captions, pictures, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--folder", type=Path, default=Path("finetuned"))
    arguments = parser.parse_args()

    rng = np.random.default_rng(1)
    signs = [sign(rng) for _ in range(100)]
    old = [(picture.image, picture.caption) for picture in (make_picture(seed, "held-out") for seed in range(100))]
    before = gitfast.load("git-tiny")
    print(f"before: new words {accuracy(before, signs):.0%}, old pictures {accuracy(before, old):.0%}")
    print(f"  {before.caption(signs[0][0])!s} ({signs[0][1]})")

    grow_vocabulary("git-tiny", arguments.folder)
    train(arguments.folder, arguments.steps)

    after = gitfast.load(arguments.folder, engine="cpu")
    print(f"after: new words {accuracy(after, signs):.0%}, old pictures {accuracy(after, old):.0%}")
    print(f"  {after.caption(signs[0][0])!s} ({signs[0][1]})")


if __name__ == "__main__":
    main()
