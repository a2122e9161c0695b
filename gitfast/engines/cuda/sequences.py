"""Prefixes and sequences of one call on a CUDA device: the text tokens and the prefix that each row sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gitfast.engines.cuda.decoder import Decoder, PrefixGroup, TextRows, TextStore
from gitfast.engines.cuda.encoder import PrefixBatch
from gitfast.ops import cuda

PrefixIndex = tuple[int, int]  # a prefix: its group, and its image within


class CudaPrefix:
    """Keys and values of one image in every layer, (layers, H, P, head_dim) each, on the device of their engine.

    Stored as int8 where there are scales, float32 (layers, H, P): the factors of a token's integers. ``ready`` is an
    event after which the device has computed them; None where it has.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        engine: int,
        k_scale: Tensor | None = None,
        v_scale: Tensor | None = None,
        ready: torch.cuda.Event | None = None,
    ) -> None:
        self.keys, self.values, self.engine = keys, values, engine
        self.k_scale, self.v_scale, self.ready = k_scale, v_scale, ready

    @classmethod
    def of(cls, image: PrefixBatch, engine: int, ready: torch.cuda.Event | None = None) -> CudaPrefix:
        """Make one of a batch of one, without the batch dimension."""
        keys, values = image.data
        k_scale, v_scale = (None, None) if image.scales is None else image.scales
        return cls(keys, values, engine, k_scale, v_scale, ready)

    def note_use(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory, once it is freed, until ``stream`` has done what is enqueued by then."""
        for x in (self.keys, self.values, self.k_scale, self.v_scale):
            if x is not None and x.is_cuda:
                x.record_stream(stream)

    @property
    def num_tokens(self) -> int:
        """P, the number of image tokens."""
        return self.keys.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales."""
        return sum(x.nbytes for x in (self.keys, self.values, self.k_scale, self.v_scale) if x is not None)


class SequenceBatch:
    """The rows of one call whose search runs on the host: the text tokens and the prefix that each of them sees."""

    def __init__(
        self,
        decoder: Decoder,
        prefixes: Sequence[CudaPrefix | None],
        prompts: Sequence[Sequence[int]],
        rows: int,
        new_tokens: int,
    ) -> None:
        self._decoder = decoder
        groups, self._prefixes = group_prefixes(prefixes)
        self._groups = [_stacked(images, decoder) for images in groups]
        total = sum(map(len, prompts))
        self._longest = max(map(len, prompts), default=0) + new_tokens
        self._store = TextStore.empty(decoder, total + rows * new_tokens, max(total, rows))
        self._used = 0  # entries of the store
        self._entries: list[list[int]] = []  # every row's entries: those of its tokens, in order

    def prefill(self, ids: Sequence[Sequence[int]], *, every_token: bool = False) -> Tensor:
        """Return the hidden states (R, D) of the last token of each prompt, or of all tokens of one after another."""
        self._entries = [[self._entry() for _ in row] for row in ids]
        entries = [row[: n + 1] for row in self._entries for n in range(len(row))]
        prompts = [prompt for prompt, row in enumerate(ids) for _ in row]
        flat = [token for row in ids for token in row]
        hidden = self._run(flat, entries, prompts, independent=all(len(row) == 1 for row in ids))
        if every_token:
            return hidden
        last = torch.tensor([len(row) for row in ids], device=hidden.device).cumsum(0) - 1
        return hidden[last]

    def step(self, ids: Sequence[int], parents: Sequence[int], prompts: Sequence[int]) -> Tensor:
        """Return the hidden states (R, D) of rows that continue rows ``parents`` of the last call by one token."""
        self._entries = [[*self._entries[parent], self._entry()] for parent in parents]
        return self._run(ids, self._entries, prompts, independent=True)

    def _run(
        self, ids: Sequence[int], entries: list[list[int]], prompts: Sequence[int], *, independent: bool
    ) -> Tensor:
        on_device = torch.tensor(ids, dtype=torch.int32).to(self._device, non_blocking=True)
        rows = TextRows(on_device, *self._text_rows(entries, prompts), independent=independent)
        return self._decoder.hidden(rows, self._groups, self._store)

    def _text_rows(
        self, entries: list[list[int]], prompts: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Lay out positions, kv_index, text_len and tiles of rows with these entries, of these prompts."""
        table = torch.zeros((len(entries), self._longest), dtype=torch.int32)
        for row, own in zip(table, entries, strict=True):
            row[: len(own)] = torch.tensor(own, dtype=torch.int32)
        text_len = torch.tensor([len(own) for own in entries], dtype=torch.int32)
        prefixes = [self._prefixes[prompt] for prompt in prompts]
        tiles = group_tiles(prefixes, len(self._groups), self._device)
        positions, kv_index, len_there = (x.to(self._device) for x in (text_len - 1, table, text_len))
        return positions, kv_index, len_there, tiles

    def _entry(self) -> int:
        self._used += 1
        return self._used - 1

    @property
    def _device(self) -> torch.device:
        return self._store.keys.device


def wait_until_ready(prefixes: Sequence[CudaPrefix | None], stream: torch.cuda.Stream) -> None:
    """Let ``stream`` wait for the device to compute the prefixes: they may have been encoded on another stream."""
    events = {id(prefix.ready): prefix.ready for prefix in prefixes if prefix is not None and prefix.ready is not None}
    for event in events.values():
        stream.wait_event(event)
    for prefix in prefixes:
        if prefix is not None:
            prefix.note_use(stream)


def tokens_of(prefix: CudaPrefix | None) -> int:
    """Count the image tokens of a prefix; of text without an image, none."""
    return 0 if prefix is None else prefix.num_tokens


def group_prefixes(prefixes: Sequence[CudaPrefix | None]) -> tuple[list[list[CudaPrefix | None]], list[PrefixIndex]]:
    """Group prefixes by length, each object once; return the groups and where each given prefix is among them."""
    members: dict[int, dict[int, CudaPrefix | None]] = {}
    for prefix in prefixes:
        members.setdefault(tokens_of(prefix), {}).setdefault(id(prefix), prefix)
    order = {length: (group, list(images)) for group, (length, images) in enumerate(members.items())}
    where = []
    for prefix in prefixes:
        group, images = order[tokens_of(prefix)]
        where.append((group, images.index(id(prefix))))
    return [list(images.values()) for images in members.values()], where


def empty_group(decoder: Decoder, images: int, tokens: int) -> PrefixGroup:
    """Make memory for the prefixes of so many images and tokens."""
    config, like = decoder.config, decoder.like
    heads = config.num_attention_heads
    shape = (config.num_hidden_layers, images, heads, tokens)
    dtype = decoder.prefix_dtype if tokens else like.dtype  # no image: nothing to scale either
    keys, values = (like.new_empty((*shape, config.hidden_size // heads), dtype=dtype) for _ in range(2))
    if dtype != torch.int8:
        return PrefixGroup(keys, values)
    return PrefixGroup(keys, values, *(like.new_empty(shape, dtype=torch.float32) for _ in range(2)))


def stack(images: Sequence[CudaPrefix | None], out: PrefixGroup) -> None:
    """Copy the prefixes of a group to memory that ``empty_group`` made for as many or more."""
    present = [prefix for prefix in images if prefix is not None]
    if present:  # the others have no tokens
        for name in ("keys", "values", *(("k_scale", "v_scale") if out.k_scale is not None else ())):
            torch.stack([getattr(prefix, name) for prefix in present], 1, out=getattr(out, name)[:, : len(present)])


def put(images: Sequence[CudaPrefix | None], places: Sequence[int], out: PrefixGroup) -> None:
    """Copy prefixes to their places in a group."""
    present = [(prefix, place) for prefix, place in zip(images, places, strict=True) if prefix is not None]
    if present:
        for name in ("keys", "values", *(("k_scale", "v_scale") if out.k_scale is not None else ())):
            memory = getattr(out, name)
            to, given = ([memory[:, place] for _, place in present], [getattr(prefix, name) for prefix, _ in present])
            torch._foreach_copy_(to, given)


def _stacked(images: Sequence[CudaPrefix | None], decoder: Decoder) -> PrefixGroup:
    """Make a group that is read once: one prefix alone stays where it is."""
    first = images[0]
    if first is not None and len(images) == 1:
        given = (first.keys, first.values, first.k_scale, first.v_scale)
        return PrefixGroup(*(x[:, None] for x in given if x is not None))
    group = empty_group(decoder, len(images), tokens_of(first))
    stack(images, out=group)
    return group


def group_tiles(prefixes: Sequence[PrefixIndex], groups: int, device: torch.device) -> list[Tensor]:
    """List the tiles of the rows of each group, on the device; row r sees ``prefixes[r]``."""
    of_groups = [[image if own == group else -1 for own, image in prefixes] for group in range(groups)]
    tiles = [cuda.attention_tiles(images) for images in of_groups]
    return [x[x[:, 2] >= 0].to(device) for x in tiles]
