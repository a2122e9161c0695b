"""Train the demonstration models and write them in Hugging Face layout.

    python examples/train_tiny/train.py image models/git-tiny
    python examples/train_tiny/train.py video models/git-tiny-video

Everything is seeded; two CPU cores are enough. At the end it prints accuracy on held-out pictures (``evaluate.py``).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from clips import NUM_FRAMES, make_clip
from evaluate import evaluate
from pictures import make_picture
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from vocabulary import CLS, MAX_TOKENS, PAD, SEP, make_tokenizer, save_tokenizer, words

import gitfast
from gitfast.checkpoints.config import GitConfig, GitVisionConfig
from gitfast.inputs.image import ImageProcessor
from gitfast.torch_model import GitModel

SEED = 2022  # the year of the GIT paper
IMAGE_SIZE = 64
TEXTS_PER_PICTURE = 4  # the caption and three questions


@dataclass(frozen=True)
class Recipe:
    """The data and the length of a training run."""

    video: bool
    steps: int
    batch_size: int
    learning_rate: float
    patch_size: int
    vision_layers: int
    text_layers: int


RECIPES = {
    "image": Recipe(False, 15000, 32, 7e-4, patch_size=8, vision_layers=4, text_layers=3),
    "video": Recipe(True, 3000, 32, 7e-4, patch_size=16, vision_layers=3, text_layers=3),
}


def make_config(recipe: Recipe) -> GitConfig:
    vision = GitVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=recipe.vision_layers,
        num_attention_heads=2,  # of width 64, as in every published checkpoint
        image_size=IMAGE_SIZE,
        patch_size=recipe.patch_size,
    )
    return GitConfig(
        vision_config=vision,
        vocab_size=len(words()),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=recipe.text_layers,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        num_image_with_embedding=NUM_FRAMES if recipe.video else None,
        bos_token_id=CLS,
        eos_token_id=SEP,
        pad_token_id=PAD,
    )


class Batches(Dataset):
    """Batch i is a function of i alone, so the data do not depend on who draws them, or when."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.tokenizer = make_tokenizer()
        self.preprocess = ImageProcessor.for_config(make_config(recipe)).preprocess

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pixels (B, [T,] 3, size, size); ids and labels (TEXTS_PER_PICTURE * B, L), block k holding text k."""
        size = self.recipe.batch_size
        pixels, texts = [], []
        for seed in range(index * size, (index + 1) * size):
            if self.recipe.video:
                clip = make_clip(seed, "train")
                pixels.append(np.stack([self.preprocess(frame) for frame in clip.frames]))
                caption, questions = clip.caption, clip.questions
            else:
                picture = make_picture(seed, "train")
                pixels.append(self.preprocess(picture.image))
                caption, questions = picture.caption, picture.questions
            rng = np.random.default_rng([seed, 4])
            chosen = rng.permutation(len(questions))[: TEXTS_PER_PICTURE - 1]
            texts.append([("", caption), *(questions[i] for i in chosen)])
        rows = [self._row(*texts[b][k]) for k in range(TEXTS_PER_PICTURE) for b in range(size)]
        length = max(len(ids) for ids, _ in rows)
        ids = np.full((len(rows), length), PAD)
        labels = np.full((len(rows), length), -100)
        for i, (row_ids, prompt_length) in enumerate(rows):
            ids[i, : len(row_ids)] = row_ids
            labels[i, prompt_length : len(row_ids)] = row_ids[prompt_length:]  # the prompt is given, not learned
        return np.stack(pixels), ids, labels

    def _row(self, prompt: str, answer: str) -> tuple[list[int], int]:
        prompt_ids = [CLS, *self.tokenizer.encode(prompt, add_special_tokens=False).ids]
        return [*prompt_ids, *self.tokenizer.encode(answer, add_special_tokens=False).ids, SEP], len(prompt_ids)


def initialize(model: GitModel) -> None:
    """Initialize positions as strong as the features they join, and small steps along the residuals.

    Positions of patches start as sines and cosines about as strong as the patches, temporal embeddings as strong as
    the features. The contribution of each sub-layer to its residual starts small, which eases the post-norm decoder.
    ``models/README.md`` says how much each of these was worth.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Linear):
            ends_residual = name.endswith(("out_proj", "fc2", "output.dense"))
            nn.init.xavier_uniform_(module.weight, gain=0.3 if ends_residual else 1.0)
            nn.init.zeros_(module.bias)
    for embedding in getattr(model.git, "img_temporal_embedding", ()):
        nn.init.normal_(embedding, std=0.5)
    positions = model.git.image_encoder.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        positions[0] = 0  # the class token
        positions[1:] = 0.5 * sine_positions(math.isqrt(len(positions) - 1), positions.shape[1])


def sine_positions(side: int, width: int) -> Tensor:
    """Return (side * side, width): sines and cosines of row and column, at wavelengths from 2 pi to 200 pi."""
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    return torch.cat([axis.repeat_interleave(side, 0), axis.repeat(side, 1)], dim=1)


def make_optimizer(
    model: GitModel, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Make AdamW, weight decay on matrices only; warm-up over a twentieth of the run, then half a cosine to zero."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    warmup = recipe.steps // 20

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (recipe.steps - warmup)))

    return optimizer, LambdaLR(optimizer, factor)


def train(recipe: Recipe) -> GitModel:
    """Run the recipe from scratch. Returns the trained model."""
    torch.manual_seed(SEED)
    model = GitModel(make_config(recipe))
    initialize(model)
    optimizer, schedule = make_optimizer(model, recipe)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    start, losses = time.perf_counter(), []
    for step, (pixels, ids, labels) in enumerate(load(recipe)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(ids, pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - start
            print(f"step {step + 1:5d}  loss {np.mean(losses):.4f}  {seconds:6.0f} s", flush=True)
            losses.clear()
    return model


def load(recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Load the batches in order, drawn ahead by one worker process."""
    return iter(DataLoader(Batches(recipe), batch_size=None, num_workers=1, prefetch_factor=8))


def save(model: GitModel, recipe: Recipe, folder: Path) -> None:
    """Write the Hugging Face files: configuration, float16 weights, tokenizer, preprocessor."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: x.half().contiguous() for n, x in model.state_dict().items()}, folder / "model.safetensors")
    config = model.config
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files = {
        "config.json": {**config.to_dict(), "tie_word_embeddings": False, "dtype": "float16"},
        "generation_config.json": {"_from_model_config": True, **ids},
        "preprocessor_config.json": ImageProcessor.for_config(config).to_dict(),
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("folder", type=Path, help="where to write the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = RECIPES[arguments.model]
    start = time.perf_counter()
    model = train(recipe)
    save(model, recipe, arguments.folder)
    print(f"trained in {(time.perf_counter() - start) / 60:.1f} minutes")
    for name, accuracy in evaluate(gitfast.load(arguments.folder), range(1000)).items():
        print(f"held-out {name}: {100 * accuracy:.1f} %")


if __name__ == "__main__":
    main()
