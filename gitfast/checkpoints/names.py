"""The one tensor name that published files and classes spell differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from gitfast.errors import CheckpointError

T = TypeVar("T")


def canonical_name(name: str) -> str:
    """Return a tensor's name as the models have it: published files write ``img_temperal_embedding``."""
    return name.replace("img_temperal_embedding", "img_temporal_embedding")


class CanonicalNames(Mapping[str, T]):
    """Tensors by their canonical names; each is read when it is asked for.

    Raises:
        CheckpointError: a tensor is there in both spellings.
    """

    def __init__(self, tensors: Mapping[str, T]) -> None:
        self._tensors = tensors
        self._names: dict[str, str] = {}
        for name in tensors:
            if self._names.setdefault(canonical_name(name), name) != name:
                raise CheckpointError(f"weights: hold {canonical_name(name)} twice, in both spellings")

    def __getitem__(self, name: str) -> T:
        return self._tensors[self._names.get(name, name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
