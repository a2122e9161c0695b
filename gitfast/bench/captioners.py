"""Ways to caption, side by side: gitfast's engines and others, over one model and the same images.

A way is named ``ENGINE:DTYPE``, as in "transformers:bfloat16"; options of a gitfast engine follow, as in
"gitfast:bfloat16,decode=persistent"; "gitfast:int8,lanes=2", where two lanes share the threads; or
"gitfast:float32,head=two_stage". Ways that need packages of their own are in ``exported.py``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gitfast.bench.workload import NORMALIZATION, Pixels, Workload
from gitfast.types import GenerationOptions

if TYPE_CHECKING:
    import transformers

Texts = list[list[int]]


class Captioner(Protocol):
    """A loaded model. Calls end when the result is on the host. ``concurrent``: several threads may call at once."""

    concurrent: bool

    def encode(self, pixels: Pixels) -> object:
        """Encode images into the state that text is decoded over."""
        ...

    def caption(self, pixels: Pixels, new_tokens: int) -> Texts:
        """Generate greedy captions of exactly ``new_tokens`` tokens each."""
        ...

    def score(self, pixels: Pixels, ids: list[int]) -> NDArray[np.floating]:
        """Compute the log-probability of every one of ``ids`` behind the first of ``pixels`` and [CLS]: (len,)."""
        ...


@dataclass(frozen=True)
class Way:
    """A way to caption, by name."""

    engine: str
    dtype: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, name: str) -> Way:
        """Parse a name. Raises ValueError where there is no such engine or an option is not NAME=VALUE."""
        engine, _, rest = name.partition(":")
        dtype, *options = (rest or "float32").split(",")
        if engine not in ENGINES:
            raise ValueError(f"way: expected one of {', '.join(ENGINES)}, and a dtype after a colon; got {name!r}")
        pairs = [option.partition("=") for option in options]
        if any(not (option and value) for option, _, value in pairs):
            raise ValueError(f"way: expected options as NAME=VALUE after the dtype, got {name!r}")
        if options and engine != "gitfast":
            raise ValueError(f"way: only gitfast takes options, got {name!r}")
        return cls(engine, dtype, tuple((option, value) for option, _, value in pairs))

    @property
    def name(self) -> str:
        return ",".join([f"{self.engine}:{self.dtype}", *(f"{option}={value}" for option, value in self.options)])

    def missing(self) -> str | None:
        """Return the first package that it needs and that is not installed."""
        return next((p for p in ENGINES[self.engine].packages if importlib.util.find_spec(p) is None), None)

    def open(self, workload: Workload, device: str, threads: int) -> Captioner:
        """Load the model. Raises ValueError for a dtype or option that the engine does not have."""
        module, _, function = ENGINES[self.engine].maker.rpartition(".")
        make: Callable[..., Captioner] = getattr(importlib.import_module(module), function)
        return make(workload, self.dtype, device, threads, **dict(self.options))


class EngineCaptioner:
    """An engine of gitfast. It is given bytes where it normalises them itself, as its tasks give them."""

    concurrent = True
    decoded_by: str | None = None  # the way of the last call, for an engine that has several
    lanes = 1

    def __init__(self, engine: Any, workload: Workload, wait: Callable[[], object] = lambda: None) -> None:
        """Take an engine. ``wait``: returns when the device has done all enqueued work."""
        self.engine, self._bos, self._wait = engine, workload.first_token, wait

    def _encode(self, pixels: Pixels) -> Any:
        takes_bytes = getattr(self.engine, "normalization", None) is not None
        return self.engine.encode(pixels.as_bytes if takes_bytes else pixels.normalised)

    def encode(self, pixels: Pixels) -> object:
        prefixes = self._encode(pixels)
        self._wait()
        return prefixes

    def caption(self, pixels: Pixels, new_tokens: int, num_beams: int = 1) -> Texts:
        return self.decode(self._encode(pixels), new_tokens, num_beams)

    def decode(self, prefixes: Any, new_tokens: int, num_beams: int = 1) -> Texts:
        """Generate captions over prefixes that are there already."""
        options = GenerationOptions(max_new_tokens=new_tokens, num_beams=num_beams)
        stats = self.engine.stats if self.engine.name == "cuda" else None
        before = stats.persistent_searches if stats else 0
        found = self.engine.generate(prefixes, [[self._bos]] * len(prefixes), options)
        if stats:
            self.decoded_by = "operations" if stats.persistent_searches == before else "persistent"
        return [list(best.token_ids) for best, *_ in found]

    @property
    def multiprocessors(self) -> int | None:
        """Count the multiprocessors that the persistent kernel was spread over; None where it did not run."""
        placement: list[int] = self.engine.placement() if self.decoded_by == "persistent" else []
        return len(set(placement)) or None

    def score(self, pixels: Pixels, ids: list[int]) -> NDArray[np.floating]:
        return self.engine.score(self._encode(pixels[:1]), [[self._bos, *ids]])[0]


def make_gitfast(workload: Workload, dtype: str, device: str, threads: int, **options: str) -> EngineCaptioner:
    """Make gitfast's engine for the device."""
    if device == "cpu":
        from gitfast.engines.cpu import CpuEngine

        if unknown := options.keys() - {"lanes", "head"}:
            raise ValueError(f"way: gitfast on the CPU takes lanes and head, got {', '.join(unknown)}")
        if (head := options.get("head", "full")) not in ("full", "two_stage"):
            raise ValueError(f"way: expected head=full or head=two_stage, got {head}")
        wanted = options.get("lanes", "1")
        lanes = int(wanted) if wanted.isdecimal() else 0
        if lanes < 1 or threads % lanes:
            raise ValueError(f"way: expected lanes that divide {threads} threads evenly, got {wanted}")
        cpu = CpuEngine.from_weights(
            workload.config,
            workload.weights,
            dtype=dtype,
            num_threads=threads // lanes,
            num_lanes=lanes,
            two_stage_head=head == "two_stage",
        )
        captioner = EngineCaptioner(cpu, workload)
        captioner.lanes = lanes
        return captioner

    import torch

    from gitfast.engines.cuda.engine import CudaEngine

    known = ("decode", "prefix_dtype")
    if unknown := options.keys() - set(known):
        raise ValueError(f"way: gitfast on cuda takes {' and '.join(known)}, got {', '.join(unknown)}")
    given: dict[str, Any] = {"device": device_of(device), "normalization": NORMALIZATION, **options}
    engine = CudaEngine.from_weights(workload.config, workload.weights, dtype=dtype, **given)
    return EngineCaptioner(engine, workload, torch.cuda.synchronize if device == "cuda" else lambda: None)


def device_of(device: str) -> str:
    """Return the torch device: "emulated" runs the CUDA engine on tensors of the host."""
    return "cuda" if device == "cuda" else "cpu"


def make_reference(workload: Workload, dtype: str, device: str, threads: int) -> EngineCaptioner:
    """Make GIT in plain PyTorch, one image at a time."""
    import torch

    from gitfast.engines.reference import ReferenceEngine

    kind = torch_dtype(torch, dtype, "reference")
    torch.set_num_threads(threads)
    where = device_of(device)
    engine = ReferenceEngine.from_weights(workload.config, workload.weights, device=where, dtype=kind)
    return EngineCaptioner(engine, workload)


def torch_dtype(torch: Any, dtype: str, engine: str) -> Any:
    """Return a dtype by name. Raises ValueError where it is no floating dtype."""
    if dtype not in ("float64", "float32", "bfloat16", "float16"):
        raise ValueError(f"way: {engine} runs in float32, bfloat16 or float16, got {dtype!r}")
    return getattr(torch, dtype)


class Transformers:
    """transformers' generate, eager as its documentation shows."""

    concurrent = True

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int, **generate_options: Any) -> None:
        import torch

        self._torch, self._threads, self._options = torch, threads, generate_options
        model: Any = transformers_model(workload)
        self.model = model.to(device_of(device), torch_dtype(torch, dtype, "transformers"))
        self._bos = workload.first_token

    def _tensor(self, pixels: Pixels) -> Any:
        self._torch.set_num_threads(self._threads)  # every thread of the host has a number of its own
        return self._torch.from_numpy(pixels.normalised).to(self.model.device, self.model.dtype)

    def encode(self, pixels: Pixels) -> object:
        """Compute image tokens; their keys and values in the decoder come with the first token."""
        with self._torch.inference_mode():
            given = self._tensor(pixels)
            frames = given.unbind(1) if given.ndim == 5 else [given]
            features = [self.model.git.image_encoder(frame).last_hidden_state for frame in frames]
            return self.model.git.visual_projection(self._torch.cat(features, 1)).cpu()

    def caption(self, pixels: Pixels, new_tokens: int) -> Texts:
        options = {"max_new_tokens": new_tokens, "do_sample": False, **self._options}
        with self._torch.inference_mode():
            texts: Texts = self.model.generate(pixel_values=self._tensor(pixels), **options)[:, 1:].tolist()
        return texts

    def score(self, pixels: Pixels, ids: list[int]) -> NDArray[np.floating]:
        torch = self._torch
        with torch.inference_mode():
            given = torch.tensor([[self._bos, *ids]], device=self.model.device)
            logits = self.model(input_ids=given, pixel_values=self._tensor(pixels[:1])).logits[0, -len(ids) - 1 : -1]
            scores: NDArray[np.floating] = (
                logits.double().log_softmax(-1).gather(1, given[0, 1:, None])[:, 0].cpu().numpy()
            )
        return scores


def transformers_model(workload: Workload) -> transformers.GitForCausalLM:
    """Build a model with the weights given; nothing is initialised in vain."""
    import torch
    import transformers

    config = transformers.GitConfig(**workload.config.to_dict())
    with torch.device("meta"):
        model = transformers.GitForCausalLM(config).eval()
    names = dict.fromkeys(model.state_dict())
    state = {}
    for name in workload.weights:
        own = name.replace("img_temperal_embedding", "img_temporal_embedding")
        if own in names:
            state[own] = torch.from_numpy(np.array(workload.weights[name], np.float32))
    model.load_state_dict(state, assign=True)
    for part in model.modules():  # position ids are not in the state
        if (ids := getattr(part, "position_ids", None)) is not None:
            part.position_ids = torch.arange(ids.shape[-1])[None]
    return model.requires_grad_(False)


@dataclass(frozen=True)
class Maker:
    """The function that makes an engine's captioner, and the packages that it needs."""

    maker: str
    packages: tuple[str, ...] = ()


ENGINES = {
    "gitfast": Maker("gitfast.bench.captioners.make_gitfast"),
    "transformers": Maker("gitfast.bench.captioners.Transformers", ("torch", "transformers")),
    "compiled": Maker("gitfast.bench.exported.make_compiled", ("torch", "transformers")),
    "openvino": Maker("gitfast.bench.exported.OpenVino", ("torch", "openvino")),
    "onnxruntime": Maker("gitfast.bench.exported.OnnxRuntime", ("torch", "onnxruntime", "onnx")),
    "reference": Maker("gitfast.bench.captioners.make_reference", ("torch",)),
}
