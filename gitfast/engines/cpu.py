"""The CPU engine: the whole model in C++, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gitfast import _C
from gitfast._C import Prefix as CpuPrefix
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.names import CanonicalNames
from gitfast.engines.base import EngineStats
from gitfast.engines.search import generations, native_options
from gitfast.errors import CheckpointError
from gitfast.types import Generation, GenerationOptions, ImagePrefix, TokenCallback

DTYPES = ("float32", "bfloat16", "int8")


class CpuEngine:
    """``gitfast.engines.base.Engine`` on the processor. Calls release the GIL, are thread-safe, and work after fork.

    A row's result is bitwise independent of the other rows of its call and of the number of threads.
    """

    name = "cpu"

    def __init__(self, config: GitConfig, native: _C.CpuEngine) -> None:
        self.config = config
        self._native = native

    @classmethod
    def from_weights(
        cls,
        config: GitConfig,
        weights: Mapping[str, np.ndarray],
        *,
        dtype: str = "float32",
        num_threads: int = 0,
        isa: str = "",
        two_stage_head: bool = False,
    ) -> CpuEngine:
        """Build from a checkpoint's tensors (float32 or float16) by Hugging Face name.

        Each tensor is looked up once, packed, and let go. ``dtype`` is how matrices are stored: "float32"; "bfloat16",
        multiplied as such, with activations rounded to it, where the processor can (``isa`` avx512_bf16), and widened
        to float32 elsewhere; or "int8", with one scale per output channel of the decoder and its head, and bfloat16 in
        the vision encoder. Sums, softmax, norms and logits are float32 always. ``num_threads`` 0 takes
        ``GITFAST_NUM_THREADS`` or the processors this process may use; ``isa`` "" takes ``GITFAST_ISA`` or the best
        instruction set there is.

        ``two_stage_head``: greedy search scores the vocabulary by an int8 copy of the head, and reads the head itself
        only where the error bound of that leaves a choice. Tokens are exactly those of the full head; log-probabilities
        are approximate, because the sum over the vocabulary is. For "int8" it changes nothing.

        Raises:
            CheckpointError: a tensor is missing, or its shape or dtype does not suit ``config``; or int8 meets a weight
                that is not finite.
            ValueError: ``dtype``, ``num_threads`` or ``isa`` cannot be.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected {', '.join(map(repr, DTYPES))}, got {dtype!r}")
        threads, chosen = _C.choose_num_threads(num_threads), _C.choose_isa(isa)
        try:
            native = _C.CpuEngine(
                dataclasses.asdict(config), CanonicalNames(weights), dtype, threads, chosen, two_stage_head
            )
            return cls(config, native)
        except KeyError as error:
            raise CheckpointError(f"weights: missing {error.args[0]}") from error
        except ValueError as error:
            raise CheckpointError(f"weights: {error}") from error

    @property
    def isa(self) -> str:
        """The instruction set in use: ``scalar``, ``avx2``, ``avx512``, ``avx512_bf16`` or ``amx``."""
        return self._native.isa

    @property
    def dtype(self) -> str:
        """How matrices are stored: ``float32``, ``bfloat16`` or ``int8``."""
        return self._native.dtype

    @property
    def num_threads(self) -> int:
        return self._native.num_threads

    @property
    def nbytes(self) -> int:
        """Bytes held by the weights."""
        return self._native.nbytes

    @property
    def stats(self) -> EngineStats:
        """Work done so far."""
        counts = self._native.stats
        return EngineStats(
            encoded_images=counts["encoded_images"],
            prefill_tokens=counts["prefill_tokens"],
            decode_steps=counts["decode_steps"],
        )

    def encode(self, pixel_values: np.ndarray, *, interpolate_positions: bool = False) -> list[CpuPrefix]:
        """Images (B, 3, H, W) or clips (B, T, 3, H, W), float32, normalised -> one prefix per image or clip.

        A single image on a video model gets no temporal embedding. ``interpolate_positions``: see ``Engine.encode``.

        Raises:
            ValueError: dtype, layout, size or number of frames do not suit the model.
        """
        return self._native.encode(pixel_values, interpolate_positions)

    def features(self, pixel_values: np.ndarray, *, interpolate_positions: bool = False) -> np.ndarray:
        """Vision features of all frames, (B, T * N, vision width), float32: what the projection reads."""
        return self._native.features(pixel_values, interpolate_positions)

    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
    ) -> list[list[Generation]]:
        """Row r continues ``prompts[r]`` on ``prefixes[r]``; all rows run as one batch. See ``Engine.generate``.

        Raises:
            ValueError: an argument or option that cannot be; the message names it.
        """
        values = native_options(options, self.config.eos_token_id)
        return generations(self._native.generate(prefixes, prompts, values, on_token))

    def score(self, prefixes: Sequence[ImagePrefix | None], sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability of every token of ``sequences[r]`` but its first, given those before: float32 (len - 1,)."""
        return self._native.score(prefixes, sequences)

    def logits(self, prefixes: Sequence[ImagePrefix | None], sequences: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Logits at every token of ``sequences[r]``, float32 (len, V)."""
        return self._native.logits(prefixes, sequences)

    def attend(self, prefix: ImagePrefix, sequence: Sequence[int]) -> np.ndarray:
        """Attention of every token of ``sequence`` to the image tokens, float32 (len, P): ``base.Attend``."""
        return self._native.attend(prefix, sequence)
