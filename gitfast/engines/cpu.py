"""The CPU engine: the whole model in C++, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from gitfast import _C, arguments
from gitfast._C import Prefix as CpuPrefix
from gitfast.checkpoints.config import GitConfig
from gitfast.checkpoints.names import CanonicalNames
from gitfast.engines.base import Decoding, DecodingEvent, Engine, EngineStats
from gitfast.engines.search import generations, native_options
from gitfast.errors import ArgumentError, CheckpointError
from gitfast.types import CancelToken, Generation, GenerationOptions, ImagePrefix, TokenCallback, cancel_flag

DTYPES = ("float32", "bfloat16", "int8", "w8a8")


class CpuEngine(Engine):
    """An engine on the CPU. Calls release the GIL, are thread-safe, and work after fork.

    It has one lane or several over one copy of the weights, each a crew of threads with a running batch. A call goes to
    the lane with the least work; its images or rows are divided among the lanes, unless it has a callback. In a lane,
    calls from several threads that are at work at the same time share the running batch: their rows share every step,
    and their images are encoded between steps, a layer at a time. A row's result is bitwise independent of the other
    rows of its call, of other calls, and of the number of threads and lanes.
    """

    name = "cpu"
    attends = True

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
        num_lanes: int = 0,
        isa: str = "",
        two_stage_head: bool = False,
    ) -> CpuEngine:
        """Build from a checkpoint's tensors (float32 or float16) by Hugging Face name.

        Each tensor is looked up once, packed, and let go. ``dtype`` is that of stored matrices: "float32"; "bfloat16",
        multiplied as such, with activations rounded to it, where the CPU can (``isa`` avx512_bf16, avx512_bf16_vnni,
        amx and neon_bf16), and widened to float32 elsewhere; "int8", with one scale per output channel, multiplied as
        bfloat16 by ``isa`` avx512_bf16 and amx, and by others as whole numbers, with activations in 14 or 15 bits; or
        "w8a8", the same weights with activations in 8 bits where the CPU multiplies those (``isa`` with vnni in its
        name, avx512_bf16, neon_dot and neon_bf16), and int8 elsewhere. Sums, softmax, norms and logits are float32
        always. ``isa`` "" takes ``GITFAST_ISA`` or the best instruction set there is.

        There are ``num_lanes`` crews of ``num_threads`` each. With both 0, ``GITFAST_NUM_THREADS`` or the CPUs this
        process may use make one lane, or from 32 on lanes of at least 16. Given lanes divide them evenly; given threads
        make one lane.

        ``two_stage_head``: greedy search scores the vocabulary by an int8 copy of the head, and reads the head itself
        only where the error bound of that leaves a choice. Tokens are exactly those of the full head; log-probabilities
        are approximate, because the sum over the vocabulary is. For "int8" and "w8a8" it changes nothing.

        Raises:
            CheckpointError: a tensor is missing, or its shape or dtype does not suit ``config``; or int8 meets a weight
                that is not finite.
            ArgumentError, ValueError: another argument cannot be; the message names it.
            MemoryError: there is no room for the weights, or for so many threads.
        """
        if not isinstance(config, GitConfig):
            raise ArgumentError(f"config: expected a GitConfig, got {arguments.shown(config)}")
        if not isinstance(weights, Mapping):
            raise ArgumentError(f"weights: expected a mapping of arrays, got {arguments.shown(weights)}")
        arguments.choice("dtype", dtype, DTYPES)
        num_threads = arguments.integer("num_threads", num_threads, 0, _C.max_threads)
        num_lanes = arguments.integer("num_lanes", num_lanes, 0, _C.max_threads)
        if not isinstance(isa, str) or not isa.isascii():
            raise ArgumentError(f"isa: expected the name of an instruction set, got {arguments.shown(isa)}")
        arguments.flag("two_stage_head", two_stage_head)
        (lanes, threads), chosen = _C.choose_crews(num_lanes, num_threads), _C.choose_isa(isa)
        try:
            native = _C.CpuEngine(
                dataclasses.asdict(config), CanonicalNames(weights), dtype, threads, chosen, two_stage_head, lanes
            )
            return cls(config, native)
        except KeyError as error:
            raise CheckpointError(f"weights: missing {error.args[0]}") from error
        except ValueError as error:
            raise CheckpointError(f"weights: {error}") from error

    @property
    def isa(self) -> str:
        """The instruction set in use: ``scalar``, or one of ``avx2`` to ``amx``, or of ``neon`` to ``neon_bf16``."""
        return self._native.isa

    @property
    def dtype(self) -> str:
        """The dtype in which matrices are stored: ``float32``, ``bfloat16``, ``int8`` or ``w8a8``."""
        return self._native.dtype

    @property
    def num_threads(self) -> int:
        """The threads of each lane."""
        return self._native.num_threads

    @property
    def num_lanes(self) -> int:
        return self._native.num_lanes

    @property
    def nbytes(self) -> int:
        """Bytes held by the weights."""
        return self._native.nbytes

    @property
    def stats(self) -> EngineStats:  # type: ignore[override]
        """Work done so far."""
        return EngineStats(**self._native.stats)

    def encode(
        self, pixel_values: np.ndarray, *, interpolate_positions: bool = False, cancel: CancelToken | None = None
    ) -> list[CpuPrefix]:
        """Encode images (B, 3, H, W) or clips (B, T, 3, H, W), float32, normalised: one prefix each.

        A single image on a video model gets no temporal embedding. ``interpolate_positions``: see ``Engine.encode``.

        Raises:
            ValueError: dtype, layout, size or number of frames do not suit the model.
            CancelledError, DeadlineError: by ``cancel``, between layers.
        """
        return self._native.encode(pixel_values, interpolate_positions, cancel_flag(cancel))

    def features(
        self, pixel_values: np.ndarray, *, interpolate_positions: bool = False, cancel: CancelToken | None = None
    ) -> np.ndarray:
        """Compute the vision features of all frames, (B, T * N, vision width), float32: the projection's input."""
        return self._native.features(pixel_values, interpolate_positions, cancel_flag(cancel))

    def generate(
        self,
        prefixes: Sequence[ImagePrefix | None],
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        on_token: TokenCallback | None = None,
        *,
        cancel: CancelToken | None = None,
    ) -> list[list[Generation]]:
        """Continue ``prompts[r]`` on ``prefixes[r]``; all rows join running batches. See ``Engine.generate``.

        Raises:
            ValueError, TypeError: an argument or option that cannot be; the message names it.
            CancelledError, DeadlineError: by ``cancel``, between steps.
        """
        values = native_options(options, self.config.eos_token_ids)
        return generations(self._native.generate(prefixes, prompts, values, on_token, cancel_flag(cancel)))

    def score(
        self,
        prefixes: Sequence[ImagePrefix | None],
        sequences: Sequence[Sequence[int]],
        *,
        cancel: CancelToken | None = None,
    ) -> list[np.ndarray]:
        return self._native.score(prefixes, sequences, cancel_flag(cancel))

    def logits(
        self,
        prefixes: Sequence[ImagePrefix | None],
        sequences: Sequence[Sequence[int]],
        *,
        cancel: CancelToken | None = None,
    ) -> list[np.ndarray]:
        """Compute the logits at every token of ``sequences[r]``, float32 (len, V)."""
        return self._native.logits(prefixes, sequences, cancel_flag(cancel))

    def attend(self, prefix: ImagePrefix, sequence: Sequence[int]) -> np.ndarray:
        return self._native.attend(prefix, sequence)

    def decoding(self) -> CpuDecoding:
        """Make a running batch of its own, apart from those of the calls above, with the threads of one lane.

        Each new one takes the next lane's.
        """
        return CpuDecoding(self._native.decoding(), self.config.eos_token_ids)


class CpuDecoding(Decoding):
    """A running batch on the CPU; ``CpuEngine.decoding`` makes one. It keeps its engine alive."""

    def __init__(self, native: _C.Decoding, eos_token_ids: Sequence[int]) -> None:
        self._native = native
        self._eos_token_ids = eos_token_ids

    def add(self, prefix: ImagePrefix | None, prompt: Sequence[int], options: GenerationOptions) -> int:
        return self._native.add(prefix, prompt, native_options(options, self._eos_token_ids))

    def cancel(self, handle: int) -> bool:
        return self._native.cancel(handle)

    def step(self) -> list[DecodingEvent]:
        return [
            DecodingEvent(
                handle=handle,
                token_ids=token_ids,
                generations=None if results is None else generations([results])[0],
                error=error,
            )
            for handle, token_ids, results, error in self._native.step()
        ]

    def __len__(self) -> int:
        return len(self._native)
