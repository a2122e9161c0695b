"""The CUDA engine: own kernels for every step of text, torch's matrix products for images."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor

from gitfast import _C
from gitfast.config import GitConfig
from gitfast.engines.base import EngineStats, Generation, GenerationOptions, ImagePrefix, TokenCallback
from gitfast.engines.cuda_decoder import Decoder, PrefixGroup, TextRows, TextStore, WeightFormat
from gitfast.engines.cuda_encoder import fuse_layers
from gitfast.engines.reference import GitModel, load_weights
from gitfast.errors import EngineError
from gitfast.ops import cuda
from gitfast.search import generate_with, native_options

DTYPES: dict[str, tuple[torch.dtype, WeightFormat]] = {
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "int8": (torch.bfloat16, "int8"),
    "float8": (torch.bfloat16, "float8"),
}


class CudaPrefix:
    """Keys and values of one image in every layer, (layers, H, P, head_dim) each, on the device of their engine."""

    def __init__(self, keys: Tensor, values: Tensor, engine: int) -> None:
        self.keys, self.values, self.engine = keys, values, engine

    @property
    def num_tokens(self) -> int:
        """P, the number of image tokens."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes


class CudaEngine:
    """``gitfast.engines.base.Engine`` on one CUDA device. Calls from several threads run one after another.

    A row's text is bitwise independent of the other rows of its call; an image's prefix may depend on its batch, by
    the matrix products that cuBLAS chooses.
    """

    name = "cuda"
    _ids = itertools.count()

    def __init__(self, model: GitModel, weights: WeightFormat = None) -> None:
        self.config = model.config
        self.stats = EngineStats()
        self._id = next(self._ids)
        self._lock = threading.Lock()
        self._model = model.eval().requires_grad_(False)
        self._decoder = Decoder(model, weights)
        fuse_layers(model)

    @classmethod
    def from_weights(
        cls,
        config: GitConfig,
        weights: Mapping[str, np.ndarray | Tensor],
        *,
        device: str | torch.device = "cuda",
        dtype: str = "bfloat16",
    ) -> CudaEngine:
        """Build from a checkpoint's tensors, by Hugging Face name.

        ``dtype`` is that of weights and activations, "bfloat16" or "float16"; or "int8" or "float8", which store the
        decoder's and the head's matrices for text in 8 bits, one scale per row, beside bfloat16 activations. Sums,
        softmax, norms and logits are float32.

        Raises:
            CheckpointError: tensors are missing, unexpected or mis-shaped.
            EngineError: the kernels do not take the model's widths, or device memory does not suffice.
            ValueError: ``dtype`` cannot be.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected {', '.join(map(repr, DTYPES))}, got {dtype!r}")
        activations, stored = DTYPES[dtype]
        model = GitModel(config)
        load_weights(model, weights)
        try:
            return cls(model.to(device=device, dtype=activations), stored)
        except torch.OutOfMemoryError as error:
            raise EngineError(f"cuda engine: {error}") from error
        except ValueError as error:
            raise EngineError(f"cuda engine: does not take this model in {dtype}: {error}") from error

    @torch.inference_mode()
    def encode(self, pixel_values: np.ndarray, *, interpolate_positions: bool = False) -> list[CudaPrefix]:
        """Images (B, 3, H, W) or clips (B, T, 3, H, W), normalised -> one prefix per image or clip.

        Raises:
            ValueError: rank, size or number of frames do not suit the model.
            EngineError: device memory does not suffice; the engine stays usable.
        """
        with self._lock, _memory_errors():
            pixels = torch.as_tensor(np.ascontiguousarray(pixel_values)).to(self._decoder.like.device)
            layers = self._model.prefix(self._model.image_tokens(pixels, interpolate_positions))
            keys, values = (torch.stack([pair[i] for pair in layers], dim=1) for i in range(2))  # (B, layers, ...)
            self.stats.encoded_images += len(pixels)
            return [CudaPrefix(keys[b], values[b], self._id) for b in range(len(pixels))]

    @torch.inference_mode()
    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
    ) -> list[list[Generation]]:
        """Row r continues ``prompts[r]`` on ``prefixes[r]``; all rows run as one batch. See ``Engine.generate``.

        Raises:
            ValueError: an option or prompt that cannot be; the message names it.
            EngineError: device memory does not suffice; the engine stays usable.
        """
        config = self.config
        given = self._checked(prefixes, prompts, options.max_new_tokens)
        with self._lock, _memory_errors():
            rows = len(prompts) * max(options.num_beams, options.num_return_sequences, 1)
            text = _Text(self._decoder, given, prompts, rows, options.max_new_tokens)
            self.stats.prefill_tokens += sum(map(len, prompts))

            def step(ids: Sequence[Sequence[int]], parents: Sequence[int] | None, items: Sequence[int]) -> Tensor:
                self.stats.decode_steps += parents is not None
                hidden = text.prompts(ids) if parents is None else text.step([i for (i,) in ids], parents, items)
                return self._decoder.logits(hidden).cpu()

            if on_token is None and _is_greedy(options):
                _C.Search(native_options(options, config.eos_token_id), prompts, config.vocab_size)  # checks them
                return self._greedy(text, prompts, options)
            return generate_with(
                step,
                prompts,
                options,
                vocab_size=config.vocab_size,
                eos_token_id=config.eos_token_id,
                on_token=on_token,
            )

    @torch.inference_mode()
    def score(self, prefixes: Sequence[ImagePrefix | None], sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability of every token of ``sequences[r]`` but its first, given those before: float32 (len - 1,)."""
        given = self._checked(prefixes, sequences, 0, name="sequences")
        with self._lock, _memory_errors():
            text = _Text(self._decoder, given, sequences, len(sequences), 0)
            log_probs = self._decoder.logits(text.prompts(sequences, every_token=True)).log_softmax(-1)
            scores, first = [], 0
            for ids in sequences:
                targets = torch.as_tensor(ids[1:], device=log_probs.device, dtype=torch.int64)
                rows = log_probs[first : first + len(ids) - 1]
                scores.append(rows.gather(1, targets[:, None])[:, 0].cpu().numpy())
                first += len(ids)
            return scores

    def _greedy(
        self, text: _Text, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> list[list[Generation]]:
        """Steps follow one another on the device: whether all rows have ended is asked for and not waited for."""
        eos, count, limit = self.config.eos_token_id, len(prompts), options.max_new_tokens
        hidden = text.prompts(prompts)
        device = hidden.device
        tokens = torch.full((limit, count), eos, dtype=torch.int32, device=device)
        log_probs = torch.zeros((limit, count), device=device)
        ended = torch.zeros(count, dtype=torch.bool, device=device)
        all_ended = _Flag(device)
        for i in range(limit):
            chosen, log_probs[i] = self._decoder.greedy(hidden)
            tokens[i] = chosen
            ended |= (chosen == eos) | (chosen < 0)  # below 0: the logits were no numbers
            all_ended.ask(ended)
            if i + 1 == limit or all_ended.seen():
                break
            self.stats.decode_steps += 1
            hidden = text.step_on_device(chosen.clamp(min=0))
        return [[g] for g in _sequences(tokens.T.cpu(), log_probs.T.cpu(), eos)]

    def _checked(
        self,
        prefixes: Sequence[ImagePrefix | None],
        texts: Sequence[Sequence[int]],
        new_tokens: int,
        name: str = "prompts",
    ) -> list[CudaPrefix | None]:
        """The prefixes, all of this engine; the texts fit the model."""
        if len(prefixes) != len(texts):
            raise ValueError(f"prefixes: expected one for each of the {len(texts)} {name}, got {len(prefixes)}")
        config = self.config
        for r, (prefix, ids) in enumerate(zip(prefixes, texts, strict=True)):
            if prefix is not None and getattr(prefix, "engine", None) != self._id:
                raise ValueError(f"prefixes[{r}]: was encoded by another engine")
            if not len(ids):
                raise ValueError(f"{name}[{r}]: expected at least one token id")
            if len(ids) + new_tokens > config.max_position_embeddings:
                more = f" and {new_tokens} new ones" if new_tokens else ""
                limit = config.max_position_embeddings
                raise ValueError(f"{name}[{r}]: {len(ids)} tokens{more} exceed the model's {limit} text positions")
            for token in ids:
                if not 0 <= token < config.vocab_size:
                    raise ValueError(f"{name}[{r}]: token id {token} is outside the vocabulary of {config.vocab_size}")
        return [cast("CudaPrefix | None", prefix) for prefix in prefixes]


class _Text:
    """The rows of one call: which text tokens and which prefix each of them sees."""

    def __init__(
        self,
        decoder: Decoder,
        prefixes: Sequence[CudaPrefix | None],
        prompts: Sequence[Sequence[int]],
        rows: int,
        new_tokens: int,
    ) -> None:
        self._decoder = decoder
        self._groups, self._places = _group(prefixes, decoder)
        total = sum(map(len, prompts))
        self._longest = max(map(len, prompts), default=0) + new_tokens
        self._store = TextStore(decoder, total + rows * new_tokens, max(total, rows))
        self._next_slot = 0
        self._slots: list[list[int]] = []  # of every row: those of its tokens, in order
        self._rows: TextRows | None = None

    def prompts(self, ids: Sequence[Sequence[int]], *, every_token: bool = False) -> Tensor:
        """Hidden states (R, D) of the last token of each prompt, or of all tokens one prompt after another."""
        self._slots = [[self._slot() for _ in row] for row in ids]
        slots = [row[: n + 1] for row in self._slots for n in range(len(row))]
        items = [item for item, row in enumerate(ids) for _ in row]
        flat = [token for row in ids for token in row]
        hidden = self._run(flat, slots, items, apart=all(len(row) == 1 for row in ids))
        if every_token:
            return hidden
        last = torch.tensor([len(row) for row in ids], device=hidden.device).cumsum(0) - 1
        return hidden[last]

    def step(self, ids: Sequence[int], parents: Sequence[int], items: Sequence[int]) -> Tensor:
        """Hidden states (R, D) of rows that continue rows ``parents`` of the call before by one token each."""
        self._slots = [[*self._slots[parent], self._slot()] for parent in parents]
        return self._run(ids, self._slots, items, apart=True)

    def step_on_device(self, ids: Tensor) -> Tensor:
        """As ``step``, every row by its own next token, int32 (R,), which the host does not know."""
        self._slots = [[*row, self._slot()] for row in self._slots]
        rows = self._text_rows(self._slots, range(len(self._slots)))
        return self._decoder.hidden(TextRows(ids, *rows, apart=True), self._groups, self._store)

    def _run(self, ids: Sequence[int], slots: list[list[int]], items: Sequence[int], *, apart: bool) -> Tensor:
        on_device = torch.tensor(ids, dtype=torch.int32).to(self._device, non_blocking=True)
        rows = TextRows(on_device, *self._text_rows(slots, items), apart=apart)
        return self._decoder.hidden(rows, self._groups, self._store)

    def _text_rows(self, slots: list[list[int]], items: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Positions, slots, text_len and tiles of rows with these slots, of these items."""
        table = torch.zeros((len(slots), self._longest), dtype=torch.int32)
        for row, own in zip(table, slots, strict=True):
            row[: len(own)] = torch.tensor(own, dtype=torch.int32)
        text_len = torch.tensor([len(own) for own in slots], dtype=torch.int32)
        places = [self._places[item] for item in items]
        tiles = [_tiles(places, group) for group in range(len(self._groups))]
        positions, slots_there, len_there = (x.to(self._device) for x in (text_len - 1, table, text_len))
        return positions, slots_there, len_there, [x.to(self._device) for x in tiles]

    def _slot(self) -> int:
        self._next_slot += 1
        return self._next_slot - 1

    @property
    def _device(self) -> torch.device:
        return self._store.keys.device


def _group(prefixes: Sequence[CudaPrefix | None], decoder: Decoder) -> tuple[list[PrefixGroup], list[tuple[int, int]]]:
    """Groups of prefixes of one length, each object once; and of every item its group and image within."""
    members: dict[int, dict[int, CudaPrefix | None]] = {}
    for prefix in prefixes:
        members.setdefault(0 if prefix is None else prefix.num_tokens, {}).setdefault(id(prefix), prefix)
    order = {length: (group, list(images)) for group, (length, images) in enumerate(members.items())}
    places = []
    for prefix in prefixes:
        group, images = order[0 if prefix is None else prefix.num_tokens]
        places.append((group, images.index(id(prefix))))
    return [_stack(list(images.values()), decoder) for images in members.values()], places


def _stack(prefixes: list[CudaPrefix | None], decoder: Decoder) -> PrefixGroup:
    present = [prefix for prefix in prefixes if prefix is not None]
    if not present:
        config = decoder.config
        heads = config.num_attention_heads
        none = decoder.like.new_empty((config.num_hidden_layers, 1, heads, 0, config.hidden_size // heads))
        return PrefixGroup(none, none)
    if len(present) == 1:
        return PrefixGroup(present[0].keys[:, None], present[0].values[:, None])
    return PrefixGroup(torch.stack([p.keys for p in present], 1), torch.stack([p.values for p in present], 1))


def _tiles(places: Sequence[tuple[int, int]], group: int) -> Tensor:
    """Tiles of the rows of one group."""
    tiles = cuda.attention_tiles([image if own == group else -1 for own, image in places])
    return tiles[tiles[:, 2] >= 0]


def _is_greedy(options: GenerationOptions) -> bool:
    """Whether nothing but the likeliest token is asked for."""
    plain = GenerationOptions(max_new_tokens=options.max_new_tokens, seed=options.seed)
    return options == plain and options.max_new_tokens > 0


class _Flag:
    """Whether all of some booleans on a device are true, told to the host when it is known."""

    def __init__(self, device: torch.device) -> None:
        self._value = torch.zeros(1, dtype=torch.bool, pin_memory=device.type == "cuda")

    def ask(self, values: Tensor) -> None:
        self._value.copy_(values.all()[None], non_blocking=True)

    def seen(self) -> bool:
        """What has arrived by now: late, but never wrong when true, for what has ended stays so."""
        return bool(self._value)


def _sequences(tokens: Tensor, log_probs: Tensor, eos: int) -> list[Generation]:
    """Rows of tokens (R, L) up to the end-of-sequence token, with it."""
    found = []
    for row, (ids, values) in enumerate(zip(tokens.tolist(), log_probs.tolist(), strict=True)):
        reason: Literal["stop", "length"] = "stop" if eos in ids else "length"
        length = ids.index(eos) + 1 if eos in ids else len(ids)
        if -1 in ids[:length]:
            raise ValueError(f"logits: NaN in row {row}")
        score = float(np.sum(values[:length]))
        found.append(
            Generation(token_ids=ids[:length], token_logprobs=values[:length], score=score, finish_reason=reason)
        )
    return found


class _memory_errors:
    """Turns what torch says of memory into an EngineError."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise EngineError(f"cuda engine: {error}") from error
