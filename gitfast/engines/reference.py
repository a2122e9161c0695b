"""The reference engine: GIT in plain PyTorch, one row at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gitfast.checkpoints.config import GitConfig
from gitfast.engines.base import Engine
from gitfast.engines.checks import check_cancelled, check_generate, check_pixels, check_text
from gitfast.engines.search import generate_with
from gitfast.torch_model import GitModel, GitOutput, KeysValues, attention_weights, build_model
from gitfast.types import CancelToken, Generation, GenerationOptions, ImagePrefix, TokenCallback


class ReferencePrefix:
    """The image prefix of one image or clip; implements ``gitfast.engines.base.ImagePrefix``."""

    def __init__(self, layers: Sequence[KeysValues]) -> None:
        self.layers = tuple(layers)  # each pair (H, P, head_dim)

    @property
    def num_tokens(self) -> int:
        """P, the number of image tokens."""
        return self.layers[0][0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes held by the keys and values."""
        return sum(x.nbytes for pair in self.layers for x in pair)

    def keys_values(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys and values of one decoder layer, each (H, P, head_dim), float32."""
        keys, values = (x.float().cpu().numpy() for x in self.layers[layer])
        return keys, values


class ReferenceEngine(Engine):
    """A ``GitModel`` as an engine, on any torch device and in any floating dtype."""

    name = "reference"
    attends = True

    def __init__(self, model: GitModel) -> None:
        self.model = model.eval()
        self.config = model.config

    @classmethod
    def from_weights(
        cls,
        config: GitConfig,
        weights: Mapping[str, np.ndarray | Tensor],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> ReferenceEngine:
        """Build from a checkpoint's tensors, by Hugging Face name. Raises ``CheckpointError``."""
        model = build_model(config, weights)
        return cls(model.to(device=device, dtype=dtype))

    @torch.inference_mode()
    def encode(
        self, pixel_values: np.ndarray, *, interpolate_positions: bool = False, cancel: CancelToken | None = None
    ) -> list[ReferencePrefix]:
        """Encode images (B, 3, H, W) or clips (B, T, 3, H, W), normalised: one prefix each. All at once.

        Raises:
            CancelledError, DeadlineError: by ``cancel``, before or after the encoding.
        """
        check_cancelled(cancel)
        given = pixel_values
        if self.dtype == "float64" and isinstance(given, np.ndarray) and given.dtype == np.float64:
            given = given.astype(np.float32)  # a model in float64 reads pixels as precise as itself
        check_pixels(given, self.config, interpolate_positions=interpolate_positions)
        pixels = torch.as_tensor(np.ascontiguousarray(pixel_values), device=self._device)
        layers = self.model.prefix(self.model.image_tokens(pixels, interpolate_positions))
        check_cancelled(cancel)
        return [ReferencePrefix([(k[b], v[b]) for k, v in layers]) for b in range(len(pixels))]

    @torch.inference_mode()
    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
        *,
        cancel: CancelToken | None = None,
    ) -> list[list[Generation]]:
        """Continue ``prompts[r]`` on ``prefixes[r]``; rows run one at a time, so none depends on another.

        Raises:
            ValueError: an option or prompt that cannot be; the message names it.
        """
        given = check_generate(prefixes, prompts, options, on_token, self.config, ReferencePrefix)
        caches: list[list[KeysValues]] = []  # caches of the last step's rows; never written to, so beams may share one

        def step(ids: Sequence[Sequence[int]], parents: Sequence[int] | None, items: Sequence[int]) -> Tensor:
            nonlocal caches
            past = [None] * len(ids) if parents is None else [caches[parent] for parent in parents]
            outputs = [self._text_rows(given[i], row, cache) for i, row, cache in zip(items, ids, past, strict=True)]
            caches = [output.cache for output in outputs]
            return torch.stack([output.logits[0, -1] for output in outputs]).float().cpu()

        vocab_size, eos = self.config.vocab_size, self.config.eos_token_ids
        return generate_with(
            step, prompts, options, vocab_size=vocab_size, eos_token_id=eos, on_token=on_token, cancel=cancel
        )

    @torch.inference_mode()
    def score(
        self,
        prefixes: Sequence[ImagePrefix | None],
        sequences: Sequence[Sequence[int]],
        *,
        cancel: CancelToken | None = None,
    ) -> list[np.ndarray]:
        given = check_text(prefixes, sequences, "sequences", self.config, ReferencePrefix)
        scores = []
        for prefix, ids in zip(given, sequences, strict=True):
            check_cancelled(cancel)
            logits = self._text_rows(prefix, ids).logits[0, :-1]
            targets = torch.as_tensor(ids[1:], device=self._device)
            chosen = _log_probs(logits).gather(-1, targets[:, None])[:, 0]
            scores.append(chosen.float().cpu().numpy())
        return scores

    @torch.inference_mode()
    def attend(self, prefix: ImagePrefix, sequence: Sequence[int]) -> np.ndarray:
        (own,) = check_text([prefix], [sequence], "sequences", self.config, ReferencePrefix)
        if own is None:
            raise ValueError("prefix: expected an image's, got None")
        git, length = self.model.git, len(sequence)
        x = git.embeddings(*(torch.as_tensor(ids, device=self._device)[None] for ids in (sequence, range(length))))
        causal = torch.ones(length, length, dtype=torch.bool, device=self._device).tril()
        allowed = torch.cat([causal.new_ones(length, own.num_tokens), causal], dim=1)[None, None]
        means = []
        for layer, image in zip(git.encoder["layer"], own.layers, strict=True):
            keys, values = (torch.cat([a[None], b], dim=2) for a, b in zip(image, layer.keys_values(x), strict=True))
            weights = attention_weights(layer.queries(x), keys, allowed)  # (1, H, len, P + len)
            means.append(weights[0, :, :, : own.num_tokens].float().mean(0))
            x = layer(x, (keys, values), allowed)
        return torch.stack(means).mean(0).cpu().numpy()

    @property
    def dtype(self) -> str:
        return str(self.model.output.weight.dtype).removeprefix("torch.")

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.model.state_dict().values())

    @property
    def _device(self) -> torch.device:
        return self.model.output.weight.device

    def _text_rows(
        self, prefix: ReferencePrefix | None, ids: Sequence[int], cache: list[KeysValues] | None = None
    ) -> GitOutput:
        """Run one text row (1, L) after the cached ones."""
        layers = None if prefix is None else [(k[None], v[None]) for k, v in prefix.layers]
        past = cache[0][0].shape[2] if cache else 0
        positions = torch.arange(past, past + len(ids), device=self._device)[None]
        rows = torch.as_tensor(ids, device=self._device)[None]
        mask = rows.new_ones(1, past + len(ids))
        return self.model.decode(rows, prefix=layers, cache=cache, attention_mask=mask, position_ids=positions)


def _log_probs(logits: Tensor) -> Tensor:
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
