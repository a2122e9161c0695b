"""Run whole searches in one kernel that stays on the device (csrc/cuda/persistent.h).

Shapes: R rows, D hidden size, L layers, C choices per row, S entries of the store of text keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gitfast import _C
from gitfast.ops import cuda
from gitfast.ops.cuda_search import SearchState

__all__ = ["CLUSTER", "HEAD_DIM", "MAX_ROWS", "DecoderWeights"]

MAX_ROWS: int = _C.cuda_limits.PERSISTENT_ROWS
HEAD_DIM: int = _C.cuda_limits.PERSISTENT_HEAD_DIM
CLUSTER: int = _C.cuda_limits.MAX_CLUSTER  # blocks that share a head


class DecoderWeights:
    """A decoder's weights as the persistent kernel reads them, checked once."""

    def __init__(
        self,
        layers: Sequence[Mapping[str, Tensor | None]],
        head: Mapping[str, Tensor | None],
        *,
        words: Tensor,
        positions: Tensor,
        gamma: Tensor,
        beta: Tensor,
        eps: float,
        heads: int,
        cluster: int | None = None,
    ) -> None:
        """Check the weights.

        Args:
            layers: per layer the ``data`` and scales of the tiled weights ``qkv``, ``out``, ``fc1`` and ``fc2``
                (``qkv``, ``qkv_scales``), their biases (``qkv_bias``), and ``gamma1``, ``beta1``, ``gamma2``, ``beta2``
                of the norms behind ``out`` and ``fc2``.
            head: ``head``, ``head_scales`` and ``head_bias``, as in ``layers``.
            words: embeddings (V, D); positions: (positions, D); gamma, beta: (D,), their norm.
            eps: of all norms.
            heads: of ``HEAD_DIM`` each.
            cluster: blocks that share a head; None takes ``CLUSTER``.

        Raises:
            ValueError: the kernel does not take these shapes or dtypes.
        """
        self.like, self.cluster = words, CLUSTER if cluster is None else cluster
        self.blocks = heads * self.cluster
        given = {"layers": [dict(layer) for layer in layers], "heads": heads, "cluster": self.cluster, **head}
        norm = {"gamma": gamma, "beta": beta, "eps": eps}
        self._native: Any = cuda._kernels(words).DecoderWeights(words=words, positions=positions, **norm, **given)

    def fits(self) -> bool:
        """Return whether the device runs all blocks of the kernel at once, and the head is small enough."""
        return bool(self._native.fits())

    def partials(self, rows: int) -> Tensor:
        """Make the memory of partial sums for steps of R rows."""
        return torch.empty(self._native.partials(rows), device=self.like.device)

    def workspace(self, rows: int, choices: int) -> Tensor:
        """Make the memory in which R rows choose among C tokens."""
        size = self._native.workspace(rows, choices)
        return torch.empty(size, dtype=torch.uint8, device=self.like.device)

    def decode(
        self,
        state: SearchState,
        *,
        k_prefix: Tensor,
        v_prefix: Tensor,
        k_text: Tensor,
        v_text: Tensor,
        k_scale: Tensor | None,
        v_scale: Tensor | None,
        partials: Tensor,
        tokens: Tensor,
        log_probs: Tensor,
        workspace: Tensor,
        barrier: Tensor,
        token_stream: Any = None,
        placement: Tensor | None = None,
    ) -> None:
        """Enqueue all steps of a search that ``ops.cuda.start_search`` began.

        Args:
            state: is changed; its sequences have ended afterwards.
            k_prefix: keys of prefixes (L, B, heads, P, HEAD_DIM); v_prefix: their values.
            k_text: keys of text tokens (L, S, heads, HEAD_DIM); v_text: their values. Appended to.
            k_scale: float32 (L, B, heads, P), for prefixes stored as int8; v_scale: the same for the values.
            partials: from :meth:`partials`.
            tokens: int32 (R, C); log_probs: float32 (R, C): scratch memory.
            workspace: from :meth:`workspace`.
            barrier: int32 (2,), zeros; the second is 1 afterwards where blocks waited in vain for each other.
            token_stream: int32 numpy array (1 + steps R,) of memory that the device writes to: the number of steps
                that are done, and their tokens. For searches without beams, all sequences at once.
            placement: int32 (``blocks``,): gets the multiprocessor that ran each block.
        """
        prefix = {"k_prefix": k_prefix, "v_prefix": v_prefix, "k_scale": k_scale, "v_scale": v_scale}
        text = {"k_text": k_text, "v_text": v_text, "tokens": tokens, "log_probs": log_probs}
        work = {"partials": partials, "workspace": workspace, "barrier": barrier, "token_stream": token_stream}
        work["placement"] = placement
        stream = cuda._stream(self.like)
        self._native.decode(state=state.arguments(), **prefix, **text, **work, stream=stream)
