"""Run single steps of a small random model by the persistent kernel, and in float64."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from gitfast.engines.search import native_options
from gitfast.ops import reference
from gitfast.ops.cuda_search import SearchSize, SearchState
from gitfast.ops.cuda_weights import TiledWeight
from gitfast.types import GenerationOptions

HEAD_DIM, EPS, VOCAB = 64, 1e-12, 61
EOS, BOS = 1, 2
Format = Literal["same", "int8", "float8"]


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Float64 values that are values of ``dtype``: operands of products are rounded where the kernels round them."""
    return x.to(dtype).double()


@dataclass
class Layer:
    """Weights as they are multiplied by, float64, and as the kernels take them."""

    matrices: dict[str, Tensor]
    vectors: dict[str, Tensor]
    given: dict[str, Tensor | None]


@dataclass
class DecodeCase:
    """One step. R rows, H heads, D = 64 H, B images of P tokens, S entries, row r sees text_len[r] tokens."""

    dtype: torch.dtype
    heads: int
    layers: list[Layer]
    words: Tensor
    positions: Tensor
    norm: tuple[Tensor, Tensor]
    step: dict[str, Any]  # arrays of the search's state, and keys and values
    cluster: int
    log_probs: Tensor  # float32 (R, VOCAB), of the last run
    before: tuple[Tensor, Tensor]  # keys and values of text before the step
    head: TiledWeight  # (VOCAB, D)
    head_bias: Tensor

    def weights(self, module: ModuleType) -> Any:
        """The model of the case, as ``module`` takes it."""
        given, (gamma, beta) = [layer.given for layer in self.layers], self.norm
        head = {"head": self.head.data, "head_scales": self.head.scales, "head_bias": self.head_bias}
        tables = {"words": self.words, "positions": self.positions, "gamma": gamma, "beta": beta, "eps": EPS}
        return module.DecoderWeights(layers=given, heads=self.heads, **tables, cluster=self.cluster, **head)

    def run(self, module: ModuleType) -> DecodeCase:
        """One step of greedy search, with the likeliest tokens of all as choices."""
        rows, longest = self.step["kv_index"].shape
        state = SearchState(SearchSize(rows, 1, rows, 1, False, longest + 1), EOS, torch.device("cpu"))
        options = native_options(GenerationOptions(max_new_tokens=1), EOS)
        state.ask([[BOS]] * rows, [0] * rows, options)
        state.given.to_device()
        module.start_search(state=state.arguments())
        for name in ("ids", "positions", "text_len", "image"):
            setattr(state, name, self.step[name].clone())
        state.kv_index = torch.nn.functional.pad(self.step["kv_index"], (0, 1), value=-9)
        stored = {name: x for name, x in self.step.items() if name[:2] in ("k_", "v_")}
        tokens, log_probs = decode(module, self, state, VOCAB, torch.zeros(2, dtype=torch.int32), None, **stored)
        self.log_probs = torch.full((rows, VOCAB), torch.nan)
        known = tokens[:, 0] >= 0
        self.log_probs[known] = self.log_probs[known].scatter(1, tokens[known].long(), log_probs[known])
        return self

    def truth(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows (R, D), and the keys and values (layers, R, H, 64) of their own tokens."""
        step, dtype, H = self.step, self.dtype, self.heads
        ids, positions = step["ids"].long(), step["positions"].long()
        D = self.words.shape[1]
        x = _norm(self.words.double()[ids] + self.positions.double()[positions], *self.norm)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            m, v = layer.matrices, layer.vectors
            qkv = _rounded(_linear(_rounded(x, dtype), m["qkv"], v["qkv_bias"]), dtype)
            q, k_new, v_new = qkv.view(-1, 3, H, HEAD_DIM).unbind(1)
            keys.append(k_new)
            values.append(v_new)
            mixed = torch.stack([self._attention(index, row, q[row], k_new[row], v_new[row]) for row in range(len(x))])
            y = _linear(_rounded(mixed.view(-1, D), dtype), m["out"], v["out_bias"])
            x = _norm(x + y, v["gamma1"], v["beta1"])
            inner = _rounded(_linear(_rounded(x, dtype), m["fc1"], v["fc1_bias"], "gelu"), dtype)
            x = _norm(x + _linear(inner, m["fc2"], v["fc2_bias"]), v["gamma2"], v["beta2"])
        return x, torch.stack(keys), torch.stack(values)

    def _attention(self, layer: int, row: int, q: Tensor, k_new: Tensor, v_new: Tensor) -> Tensor:
        """Attention of one row: (H, 64)."""
        image, length = int(self.step["image"][row]), int(self.step["text_len"][row])
        earlier = self.step["kv_index"][row, : length - 1].long()
        parts = []
        for prefix, text, new in zip(("k_prefix", "v_prefix"), self.before, (k_new, v_new), strict=True):
            parts.append(
                torch.cat(
                    [
                        self._prefix(prefix, layer, image),
                        text[layer, earlier].double().transpose(0, 1),
                        new[:, None],
                    ],
                    1,
                )
            )
        return torch.from_numpy(reference.attention(q, *parts))

    def _prefix(self, name: str, layer: int, image: int) -> Tensor:
        """Keys or values (H, P, 64) of an image as they are multiplied."""
        if image < 0:
            return self.step[name].new_empty((self.heads, 0, HEAD_DIM), dtype=torch.float64)
        stored, scale = self.step[name][layer, image].double(), self.step[f"{name[0]}_scale"]
        return (
            stored
            if scale is None
            else _rounded((stored.float() * scale[layer, image, ..., None]).double(), self.dtype)
        )

    def leave_out(self, row: int) -> DecodeCase:
        """The same with a row that sees no prefix; there is memory before the first."""
        self.step["image"][row] = -1
        for name in ("k_prefix", "v_prefix"):
            self.step[name] = torch.cat([self.step[name][:1], self.step[name]])[1:]
        return self

    def quantize(self) -> DecodeCase:
        """Prefixes of int8."""
        for name in ("k", "v"):
            stored = self.step[f"{name}_prefix"]
            assert stored is not None
            scale = stored.float().abs().amax(-1) / 127
            self.step |= {
                f"{name}_prefix": (stored.float() / scale[..., None]).round().to(torch.int8),
                f"{name}_scale": scale,
            }
        return self

    def error(self) -> float:
        """The largest distance of log-probabilities, and of stored keys and values, in units of what is allowed.

        Rows are allowed one rounding to the dtype, independent in every element; keys and values one rounding.
        """
        x, keys, values = self.truth()
        eps, head = torch.finfo(self.dtype).eps, self.head.unpack().double()
        expected = (_rounded(x, self.dtype) @ head.T + self.head_bias.double()).log_softmax(-1)
        allowed = 2 * eps * ((1 + x.abs()) ** 2 @ (head.T**2)).sqrt().amax(-1, keepdim=True)
        worst = ((self.log_probs.double() - expected).abs() / allowed).max().item()
        own = self.step["kv_index"].gather(1, self.step["text_len"].long()[:, None] - 1)[:, 0].long()
        for name, before, new in zip(("k_text", "v_text"), self.before, (keys, values), strict=True):
            stored = self.step[name]
            distance = (stored[:, own].double() - new).abs() / (eps * (1 + new.abs()))
            worst = max(worst, distance.max().item())
            others = torch.ones(stored.shape[1], dtype=torch.bool)
            others[own] = False
            worst = max(worst, float(not torch.equal(stored[:, others], before[:, others])) * 99)
        return worst if worst == worst else float("inf")


def decode(
    module: ModuleType,
    case: DecodeCase,
    state: SearchState,
    choices: int,
    barrier: Tensor,
    token_stream: Tensor | None,
    **keys_values: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the persistent kernel in memory of its own; the last step's tokens and log-probabilities (R, choices)."""
    weights, R = case.weights(module), state.size.rows
    tokens, log_probs = torch.full((R, choices), -9, dtype=torch.int32), torch.full((R, choices), torch.nan)
    partials = torch.full((weights.partials(R),), torch.nan)
    workspace = torch.empty(weights.workspace(R, choices), dtype=torch.uint8)
    work = {"partials": partials, "workspace": workspace, "barrier": barrier, "token_stream": token_stream}
    weights.decode(state=state.arguments(), tokens=tokens, log_probs=log_probs, **work, **keys_values)
    return tokens, log_probs


def _linear(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    return torch.from_numpy(reference.linear(x, weight, bias, activation=activation))


def _norm(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return torch.from_numpy(reference.layer_norm(x, gamma.double(), beta.double(), eps=EPS))


def make_case(
    rows: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    weights: Format = "same",
    heads: int = 2,
    layers: int = 2,
    intermediate: int = 256,
    prefix: int = 9,
    images: int = 2,
    longest: int = 5,
    cluster: int = 2,
    seed: int = 0,
) -> DecodeCase:
    """Row r has 1 + r % longest text tokens, and image r % images. Entries are given out in disorder."""
    generator = torch.Generator().manual_seed(seed)
    D = heads * HEAD_DIM

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    def layer() -> Layer:
        matrices, vectors, given = {}, {}, {}
        for name, (N, K) in {
            "qkv": (3 * D, D), "out": (D, D), "fc1": (intermediate, D), "fc2": (D, intermediate)
        }.items():  # fmt: skip
            packed = TiledWeight.pack(normal(N, K, scale=K**-0.5), None if weights == "same" else weights)
            matrices[name] = packed.unpack().double()
            vectors[f"{name}_bias"] = normal(N, scale=0.1)
            given |= {name: packed.data, f"{name}_scales": packed.scales}
        for name in ("gamma1", "gamma2"):
            vectors[name] = 1 + normal(D, scale=0.1)
        for name in ("beta1", "beta2"):
            vectors[name] = normal(D, scale=0.1)
        return Layer(matrices, {name: x.double() for name, x in vectors.items()}, given | vectors)

    head = TiledWeight.pack(normal(VOCAB, D, scale=D**-0.5), None if weights == "same" else weights)
    kv_index = torch.randperm(rows * longest, generator=generator).int().view(rows, longest)
    text_len = (torch.arange(rows) % longest + 1).int()
    text = (layers, rows * longest, heads, HEAD_DIM)
    image_keys = (layers, images, heads, prefix, HEAD_DIM)
    step = {
        "ids": torch.randint(0, VOCAB, (rows,), generator=generator).int(),
        "positions": text_len - 1,
        "image": (torch.arange(rows) % images).int(),
        "kv_index": kv_index,
        "text_len": text_len,
        "k_prefix": normal(*image_keys),
        "v_prefix": normal(*image_keys),
        "k_text": normal(*text),
        "v_text": normal(*text),
        "k_scale": None,
        "v_scale": None,
    }
    return DecodeCase(
        dtype,
        heads,
        [layer() for _ in range(layers)],
        normal(VOCAB, D),
        normal(longest, D),
        (1 + normal(D, scale=0.1), normal(D, scale=0.1)),
        step,
        cluster,
        torch.empty(0),
        (step["k_text"].clone(), step["v_text"].clone()),
        head,
        normal(VOCAB, scale=0.1),
    )
