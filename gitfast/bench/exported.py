"""GIT on a CPU by other ways, each as a careful user would build it: torch.compile, OpenVINO, ONNX Runtime.

All get two models: the image part ends in the keys and values of every decoder layer (the last layer computes nothing
else, as in gitfast), the step part takes one token and the keys and values before it. OpenVINO keeps these
inside the model; ONNX Runtime hands them on without a copy. They are built for one image.
`pip install "gitfast[peers]"`.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gitfast.bench.captioners import Captioner, Texts, Transformers, torch_dtype
from gitfast.bench.workload import Pixels, Workload
from gitfast.checkpoints.config import GitConfig
from gitfast.torch_model import DecoderLayer, GitModel, build_model, merge_heads


def git_model(workload: Workload) -> GitModel:
    return build_model(workload.config, workload.weights).eval().requires_grad_(False)


def decoder_layer(layer: DecoderLayer, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Run a decoder layer with torch's fused attention, which exporters recognise."""
    tail = layer.attention["output"]
    context = merge_heads(F.scaled_dot_product_attention(layer.queries(x), keys, values))
    x = tail["LayerNorm"](tail["dense"](context) + x)
    y = F.gelu(layer.intermediate["dense"](x))
    return layer.output["LayerNorm"](layer.output["dense"](y) + x)


class ImagePart(nn.Module):
    """Pixels (1, 3, H, W) -> keys and values of every layer (1, H, P, head_dim), alternating."""

    def __init__(self, model: GitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        vision = self.model.git.image_encoder["vision_model"]
        x = vision.pre_layrnorm(vision.embeddings(pixels))
        for layer in vision.encoder["layers"]:
            context = merge_heads(F.scaled_dot_product_attention(*layer.queries_keys_values(x)))
            x = x + layer.self_attn["out_proj"](context)
            y = layer.mlp["fc1"](layer.layer_norm2(x))
            x = x + layer.mlp["fc2"](y * torch.sigmoid(1.702 * y))
        x = self.model.git.visual_projection["visual_projection"](vision.post_layernorm(x))
        out, layers = [], self.model.git.encoder["layer"]
        for i, layer in enumerate(layers):
            keys, values = layer.keys_values(x)
            out += [keys, values]
            if i + 1 < len(layers):
                x = decoder_layer(layer, x, keys, values)
        return tuple(out)


class StepPart(nn.Module):
    """One token (1, 1), its position (1, 1), and keys and values so far -> logits (1, V), and these with its own."""

    def __init__(self, model: GitModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, position: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        x = self.model.git.embeddings(ids, position)
        present = []
        for i, layer in enumerate(self.model.git.encoder["layer"]):
            keys, values = layer.keys_values(x)
            keys, values = torch.cat([past[2 * i], keys], dim=2), torch.cat([past[2 * i + 1], values], dim=2)
            present += [keys, values]
            x = decoder_layer(layer, x, keys, values)
        return (self.model.output(x[:, 0]), *present)


def names_of(config: GitConfig) -> list[str]:
    return [f"{kind}{i}" for i in range(config.num_hidden_layers) for kind in ("keys", "values")]


class TwoParts:
    """Greedy search and teacher forcing over an image part and a step part."""

    concurrent = False

    def __init__(self, workload: Workload) -> None:
        if workload.config.is_video:
            raise ValueError("way: compiled, openvino and onnxruntime caption images, this model reads clips")
        self.config, self._bos = workload.config, workload.first_token

    def begin(self, pixels: NDArray[np.float32]) -> None:
        """Encode an image (1, 3, H, W)."""
        raise NotImplementedError

    def step(self, token: int, position: int) -> NDArray[np.float32]:
        """Compute logits (V,) after one more token."""
        raise NotImplementedError

    def encode(self, pixels: Pixels) -> None:
        for i in range(len(pixels)):
            self.begin(pixels.normalised[i : i + 1])

    def caption(self, pixels: Pixels, new_tokens: int) -> Texts:
        """Caption one image after another."""
        return [self._caption(pixels.normalised[i : i + 1], new_tokens) for i in range(len(pixels))]

    def _caption(self, image: NDArray[np.float32], new_tokens: int) -> list[int]:
        self.begin(image)
        ids = [self._bos]
        for position in range(new_tokens):
            ids.append(int(self.step(ids[-1], position).argmax()))
        return ids[1:]

    def score(self, pixels: Pixels, ids: list[int]) -> NDArray[np.floating]:
        self.begin(pixels.normalised[:1])
        scores = []
        for position, (token, following) in enumerate(zip([self._bos, *ids], ids, strict=False)):
            logits = self.step(token, position).astype(np.float64)
            logits -= logits.max()
            scores.append(logits[following] - np.log(np.exp(logits).sum()))
        return np.array(scores)


class OpenVino(TwoParts):
    """OpenVINO in float32, bfloat16, or int8: weights compressed by nncf, activations in bfloat16."""

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int) -> None:
        import openvino as ov
        from openvino._offline_transformations import apply_make_stateful_transformation

        super().__init__(workload)
        check_cpu(device, "openvino")
        if dtype not in ("float32", "bfloat16", "int8"):
            raise ValueError(f"way: openvino runs in float32, bfloat16 or int8, got {dtype!r}")
        model, core = git_model(workload), ov.Core()
        pixels = example_pixels(self.config)
        past = [torch.zeros(1, self.config.num_attention_heads, 3, self.config.head_dim) for _ in names_of(self.config)]
        one = torch.ones(1, 1, dtype=torch.int64)
        with torch.inference_mode(), _quiet_tracer():
            image = ov.convert_model(ImagePart(model), example_input=pixels, input=[tuple(pixels.shape)])
            cache = [ov.PartialShape([1, past[0].shape[1], -1, past[0].shape[3]])] * len(past)
            step = ov.convert_model(StepPart(model), example_input=(one, one, *past), input=[[1, 1], [1, 1], *cache])
        names = names_of(self.config)
        for port, name in zip(step.inputs[2:], names, strict=True):
            port.get_tensor().set_names({f"past_{name}"})
        for port, name in zip(step.outputs[1:], names, strict=True):
            port.get_tensor().set_names({f"present_{name}"})
        apply_make_stateful_transformation(step, {f"past_{name}": f"present_{name}" for name in names})
        if dtype == "int8":
            import nncf

            step = nncf.compress_weights(step, mode=nncf.CompressWeightsMode.INT8_SYM)
        precision = ov.Type.f32 if dtype == "float32" else ov.Type.bf16
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "KV_CACHE_PRECISION": precision,
        }
        self.image = core.compile_model(image, "CPU", options).create_infer_request()
        self.text = core.compile_model(step, "CPU", options).create_infer_request()
        self.states = {name: state for state in self.text.query_state() for name in names if name in _words(state.name)}
        self.ov = ov

    def begin(self, pixels: NDArray[np.float32]) -> None:
        self.image.infer([pixels], share_inputs=True)
        for i, name in enumerate(names_of(self.config)):
            self.states[name].state = self.image.get_output_tensor(i)

    def step(self, token: int, position: int) -> np.ndarray:
        self.text.infer([np.array([[token]]), np.array([[position]])], share_inputs=True)
        return self.text.get_output_tensor(0).data[0]


def _words(name: str) -> list[str]:
    """Split the name of a state in two: "past_keys0present_keys0"."""
    return name.removeprefix("past_").split("present_")


class OnnxRuntime(TwoParts):
    """ONNX Runtime in float32, or int8: weights and activations of the step, quantised dynamically."""

    def __init__(self, workload: Workload, dtype: str, device: str, threads: int) -> None:
        import onnxruntime

        super().__init__(workload)
        check_cpu(device, "onnxruntime")
        if dtype not in ("float32", "int8"):
            raise ValueError(f"way: onnxruntime runs in float32 or int8, got {dtype!r}")
        model, names = git_model(workload), names_of(self.config)
        past = [torch.zeros(1, self.config.num_attention_heads, 3, self.config.head_dim) for _ in names]
        one = torch.ones(1, 1, dtype=torch.int64)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), _quiet_tracer():
            image, step = Path(folder, "image.onnx"), Path(folder, "step.onnx")
            present = [f"present_{name}" for name in names]
            _export(ImagePart(model), (example_pixels(self.config),), image, ["pixels"], present, {})
            axes = {f"past_{name}": {2: "tokens"} for name in names}
            inputs = ["ids", "position", *axes]
            _export(StepPart(model), (one, one, *past), step, inputs, ["logits", *present], axes)
            if dtype == "int8":
                from onnxruntime.quantization import quantize_dynamic

                quantize_dynamic(step, Path(folder, "int8.onnx"), per_channel=True)
                step = Path(folder, "int8.onnx")
            make = onnxruntime.InferenceSession
            self.image = make(image, options, providers=["CPUExecutionProvider"])
            self.text = make(step, options, providers=["CPUExecutionProvider"])
        self.onnxruntime = onnxruntime
        self.cache: list = []

    def begin(self, pixels: NDArray[np.float32]) -> None:
        given = self.onnxruntime.OrtValue.ortvalue_from_numpy(pixels)
        self.cache = self.image.run_with_ort_values(None, {"pixels": given})

    def step(self, token: int, position: int) -> np.ndarray:
        value = self.onnxruntime.OrtValue.ortvalue_from_numpy
        feed = {"ids": value(np.array([[token]])), "position": value(np.array([[position]]))}
        names = [f"past_{name}" for name in names_of(self.config)]
        logits, *self.cache = self.text.run_with_ort_values(None, feed | dict(zip(names, self.cache, strict=True)))
        return logits.numpy()[0]


@contextlib.contextmanager
def _quiet_tracer() -> Iterator[None]:
    """Silence warnings of branches on shapes: images of one size are traced, and run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _export(part: nn.Module, inputs: tuple, path: Path, names: list[str], outputs: list[str], axes: dict) -> None:
    options: dict[str, Any] = {"input_names": names, "output_names": outputs, "dynamic_axes": axes}
    torch.onnx.export(part, inputs, str(path), opset_version=17, dynamo=False, **options)


class Compiled(TwoParts):
    """The two parts under torch.compile, the number of tokens being dynamic."""

    def __init__(self, workload: Workload, dtype: str, threads: int) -> None:
        super().__init__(workload)
        torch.set_num_threads(threads)
        self.dtype = torch_dtype(torch, dtype, "compiled")
        model = git_model(workload).to(self.dtype)
        self.image = torch.compile(ImagePart(model))
        self.text = torch.compile(StepPart(model), dynamic=True)
        self.cache: tuple[Tensor, ...] = ()

    @torch.inference_mode()
    def begin(self, pixels: NDArray[np.float32]) -> None:
        self.cache = self.image(torch.from_numpy(pixels).to(self.dtype))

    @torch.inference_mode()
    def step(self, token: int, position: int) -> NDArray[np.float32]:
        logits, *self.cache = self.text(torch.tensor([[token]]), torch.tensor([[position]]), *self.cache)
        return logits[0].float().numpy()


def make_compiled(workload: Workload, dtype: str, device: str, threads: int) -> Captioner:
    """Make, on a CPU, the two parts; on a GPU, transformers' model with a static cache, in graphs."""
    if device == "cpu":
        return Compiled(workload, dtype, threads)
    captioner = Transformers(workload, dtype, device, threads, cache_implementation="static")
    captioner.model.forward = torch.compile(captioner.model.forward, mode="reduce-overhead")
    captioner.concurrent = False
    return captioner


def check_cpu(device: str, engine: str) -> None:
    if device != "cpu":
        raise ValueError(f"way: {engine} runs on the CPU here, the device is {device}")


def example_pixels(config: GitConfig) -> Tensor:
    return torch.zeros(1, 3, config.vision_config.image_size, config.vision_config.image_size)
