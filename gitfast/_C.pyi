"""The native half of gitfast, bound by csrc/bindings. Private: use the modules that wrap it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Floats = NDArray[np.float32]
_Sequence = tuple[list[int], list[float], float, Any]  # token ids, log-probabilities, score, finish reason

def available_isas() -> list[str]: ...
def choose_isa(isa: str) -> str: ...
def multiplies_bytes(isa: str) -> bool: ...  # as w8a8; elsewhere that is int8
def choose_num_threads(num_threads: int) -> int: ...
def resample(
    pixels: Any,
    size: tuple[int, int],
    resized: tuple[int, int],
    filter: str,
    start: tuple[int, int],
    crop: tuple[int, int],
    values: np.ndarray | None,
) -> np.ndarray: ...

max_threads: int

def choose_crews(num_lanes: int, num_threads: int) -> tuple[int, int]: ...

class ThreadPool:
    def __init__(self, num_threads: int = 0) -> None: ...
    @property
    def num_threads(self) -> int: ...

class PackedWeight:
    def __init__(self, weight: ArrayLike, bias: ArrayLike | None = None, dtype: str = "float32") -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...

class PackedPrefix:
    def __init__(self, k: ArrayLike, v: ArrayLike | None, dtype: str = "float32") -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int, int]: ...

def linear(
    x: ArrayLike,
    weight: PackedWeight,
    residual: ArrayLike | None,
    activation: str,
    out: _Floats | None,
    isa: str,
    pool: ThreadPool | None,
) -> _Floats: ...
def layer_norm(
    x: ArrayLike,
    gamma: ArrayLike,
    beta: ArrayLike,
    eps: float,
    out: _Floats | None,
    isa: str,
    pool: ThreadPool | None,
) -> _Floats: ...
def prefix_attention(
    q: ArrayLike,
    prefix: PackedPrefix,
    k_text: ArrayLike | None,
    v_text: ArrayLike | None,
    slots: Sequence[Sequence[int]],
    scale: float,
    out: _Floats | None,
    isa: str,
    pool: ThreadPool | None,
) -> _Floats: ...

class Search:
    def __init__(self, options: Mapping[str, Any], prompts: Sequence[Sequence[int]], vocab_size: int) -> None: ...
    @property
    def done(self) -> bool: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def parents(self) -> list[int]: ...
    @property
    def items(self) -> list[int]: ...
    def advance(self, logits: Any) -> None: ...
    def stop(self, item: int | None = None) -> None: ...
    def results(self) -> list[list[_Sequence]]: ...

def check_search(options: Mapping[str, Any], prompts: Sequence[Sequence[int]], vocab_size: int) -> None: ...
def sample_keys(options: Mapping[str, Any], prompts: Sequence[Sequence[int]]) -> list[int]: ...
def length_norms(options: Mapping[str, Any], longest: int) -> list[float]: ...
def check_pixels(
    pixel_values: object,
    take_bytes: bool,
    interpolate_positions: bool,
    image_size: int,
    patch_size: int,
    num_frames: int,
) -> None: ...
def check_texts(
    texts: Sequence[Sequence[int]], name: str, new_tokens: int, vocab_size: int, max_positions: int
) -> None: ...

class CancelFlag:
    def __init__(self, timeout: float | None = None) -> None: ...
    def cancel(self) -> None: ...
    def check(self) -> None: ...
    @property
    def cancelled(self) -> bool: ...
    @property
    def late(self) -> bool: ...

class Prefix:
    @property
    def num_tokens(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def keys_values(self, layer: int) -> tuple[_Floats, _Floats]: ...

class Decoding:
    def add(self, prefix: Any, prompt: Sequence[int], options: Mapping[str, Any]) -> int: ...
    def cancel(self, handle: int) -> bool: ...
    def step(self) -> list[tuple[int, list[int], list[_Sequence] | None, Exception | None]]: ...
    def __len__(self) -> int: ...

class CpuEngine:
    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Any,
        dtype: str = "float32",
        num_threads: int = 0,
        isa: str = "",
        two_stage_head: bool = False,
        num_lanes: int = 0,
    ) -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def num_lanes(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def stats(self) -> dict[str, Any]: ...
    def encode(
        self, pixel_values: ArrayLike, interpolate_positions: bool = False, cancel: CancelFlag | None = None
    ) -> list[Prefix]: ...
    def features(
        self, pixel_values: ArrayLike, interpolate_positions: bool = False, cancel: CancelFlag | None = None
    ) -> _Floats: ...
    def generate(
        self,
        prefixes: Sequence[Any],
        prompts: Sequence[Sequence[int]],
        options: Mapping[str, Any],
        on_token: Callable[[int, list[int]], bool | None] | None = None,
        cancel: CancelFlag | None = None,
    ) -> list[list[_Sequence]]: ...
    def score(
        self, prefixes: Sequence[Any], sequences: Sequence[Sequence[int]], cancel: CancelFlag | None = None
    ) -> list[_Floats]: ...
    def logits(
        self, prefixes: Sequence[Any], sequences: Sequence[Sequence[int]], cancel: CancelFlag | None = None
    ) -> list[_Floats]: ...
    def decoding(self) -> Decoding: ...
    def attend(self, prefix: Any, sequence: Sequence[int]) -> _Floats: ...

class cuda_limits:
    """What the CUDA kernels take at most (csrc/bindings/cuda_limits.cpp); in builds without CUDA too."""

    MAX_BEAMS: int
    MAX_CHOICES: int
    MAX_SPLITS: int
    MAX_SPLIT_TILES: int
    HEAD_DIMS: tuple[int, ...]
    INT8_HEAD_DIM: int
    NORM_LINEAR_ROWS: int
    NORM_LINEAR_WIDTH: int
    SETTINGS_WORDS: int
    FINISHED_BEAM_WORDS: int
    PERSISTENT_ROWS: int
    PERSISTENT_LAYERS: int
    PERSISTENT_HEAD_DIM: int
    MAX_CLUSTER: int
