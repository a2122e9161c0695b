"""A made-up language: logits that depend on the last tokens through a fixed table.

The same language drives the native search, transformers' ``generate`` and brute force, so all three see the very same
float32 logits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from transformers.modeling_outputs import CausalLMOutput

from gitfast.engines.search import generate_with
from gitfast.types import Generation, GenerationOptions

PAD, BOS, EOS = 0, 1, 2


@dataclass(frozen=True)
class Language:
    table: np.ndarray  # (contexts, V)

    @classmethod
    def random(cls, seed: int, vocab_size: int, *, eos_bias: float = 0.0, contexts: int = 97) -> Language:
        """A random language; with few contexts it repeats itself."""
        table = np.random.default_rng(seed).normal(size=(contexts, vocab_size)) * 2
        table[:, EOS] += eos_bias
        return cls(table.astype(np.float32))

    @property
    def vocab_size(self) -> int:
        return self.table.shape[1]

    def logits(self, ids) -> np.ndarray:
        """Logits (V) after a sequence: its last two tokens and its length choose a row of the table."""
        before = ids[-2] if len(ids) > 1 else 0
        return self.table[(31 * ids[-1] + 17 * before + 7 * len(ids)) % len(self.table)]

    def generate(self, options: GenerationOptions, prompts, **kwargs) -> list[list[Generation]]:
        """The native search over this language."""
        rows: list[list[int]] = []

        def step(ids, parents, items):
            nonlocal rows
            rows = list(ids) if parents is None else [rows[p] + i for p, i in zip(parents, ids, strict=True)]
            return np.stack([self.logits(row) for row in rows])

        return generate_with(
            step, prompts, options, vocab_size=self.vocab_size, eos_token_id=kwargs.pop("eos", EOS), **kwargs
        )

    def log_probabilities(self, ids) -> np.ndarray:
        """Log-softmax of the logits after a sequence, float64."""
        logits = self.logits(ids).astype(np.float64)
        return logits - np.logaddexp.reduce(logits)

    def sequences(self, max_new_tokens: int):
        """Every sequence of new tokens there is: cut at the end of sequence or at ``max_new_tokens``."""
        others = [t for t in range(self.vocab_size) if t != EOS]
        for length in range(max_new_tokens):
            for head in itertools.product(others, repeat=length):
                yield [*head, EOS]
        yield from (list(s) for s in itertools.product(others, repeat=max_new_tokens))

    def score(self, prompt, new_tokens) -> float:
        """Sum of the log-probabilities of the new tokens."""
        ids = [*prompt, *new_tokens]
        return sum(self.log_probabilities(ids[:i])[ids[i]] for i in range(len(prompt), len(ids)))


class LanguageModel(transformers.PreTrainedModel, transformers.GenerationMixin):
    """A language as a transformers model."""

    config_class = transformers.PretrainedConfig

    def __init__(self, language: Language) -> None:
        config = transformers.PretrainedConfig(
            pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, vocab_size=language.vocab_size
        )
        config.is_encoder_decoder = False
        super().__init__(config)
        self.language = language
        self.dummy = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, **_):
        logits = np.stack([self.language.logits(row) for row in input_ids.tolist()])
        return CausalLMOutput(logits=torch.from_numpy(logits)[:, None])


@dataclass(frozen=True)
class Found:
    """The output of transformers for one prompt."""

    token_ids: list[list[int]]
    scores: list[float] | None


def transformers_generate(language: Language, prompts, **kwargs) -> list[Found]:
    """``generate`` of transformers over a language; prompts of one length. Padding is cut off."""
    num_sequences = kwargs.get("num_return_sequences", 1)
    output = LanguageModel(language).generate(
        torch.tensor(prompts), use_cache=False, return_dict_in_generate=True, output_scores=True, **kwargs
    )
    new_tokens = [until_end(row[len(prompts[0]) :]) for row in output.sequences.tolist()]
    scores = getattr(output, "sequences_scores", None)
    return [
        Found(
            new_tokens[i : i + num_sequences],
            None if scores is None else scores[i : i + num_sequences].tolist(),
        )
        for i in range(0, len(new_tokens), num_sequences)
    ]


def until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens
