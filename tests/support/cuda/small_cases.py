"""Small cases of the emulated kernels, for processes that a sanitizer watches: small_cases.py SANITIZER.

Widths, rows and strides are odd where that changes the path taken, and arrays are no longer than the kernel may see.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from support.cuda import (
    activation_cases,
    attention_cases,
    decode_cases,
    embed_cases,
    linear_cases,
    persistent_cases,
    search_cases,
    select_cases,
)
from support.cuda.emulated import ORDERS, load
from support.cuda.norm_cases import make_case


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values: a vector one element away from an aligned address, rows an odd number of elements apart."""
    if tensor.dim() == 1:
        return torch.cat([tensor[:1], tensor])[1:]
    return torch.cat([tensor, tensor[:, :1]], dim=1)[:, :-1]


def norm(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for dtype, width in itertools.product((torch.float32, torch.float16, torch.bfloat16), (24, 25, 520, 2200)):
        case = make_case(2, width, dtype)
        case.run(emulation.add_layer_norm)
        yield f"norm, {dtype}, width {width}", case.error()
    for name in ("x", "bias", "residual", "gamma", "beta", "out"):
        case = make_case(2, 64, torch.bfloat16)
        setattr(case, name, unaligned(getattr(case, name)))
        case.run(emulation.add_layer_norm)
        yield f"norm, unaligned {name}", case.error()


def tile_product(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for dtype, (M, N, K) in itertools.product((torch.float16, torch.bfloat16), ((1, 8, 8), (33, 24, 104))):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((M, K), (K, N)))
        out = torch.full((M, N), torch.nan)
        emulation.tile_product(a, b, out)
        error = (out.double() - a.double() @ b.double()).abs().max().item() / 1e-4
        yield f"tile_product, {dtype}, {M}x{N}x{K}", error


def activation(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    functions = activation_cases.FUNCTIONS
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for function, dtype, width in itertools.product(functions, dtypes, (24, 25, 2056)):
        case = activation_cases.make_case(function, 2, width, dtype, scale=5.0)
        case.run(emulation)
        yield f"{function}, {dtype}, width {width}", case.error()
    for name in ("x", "bias", "out"):
        case = activation_cases.make_case("bias_gelu", 2, 64, torch.bfloat16)
        setattr(case, name, unaligned(getattr(case, name)))
        case.run(emulation)
        yield f"bias_gelu, unaligned {name}", case.error()


def embed(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for dtype, width in itertools.product((torch.float32, torch.bfloat16), (24, 25)):
        case = embed_cases.make_case(5, width, dtype)
        case.ids[:3] = torch.tensor([10, 11, -1])  # the last word, and two that are none
        case.position_ids[2:] = torch.tensor([4, 5, -(2**31)])
        case.run(emulation.embed_layer_norm)
        yield f"embed, {dtype}, width {width}", case.error()
    for name in ("words", "positions"):
        case = embed_cases.make_case(2, 64, torch.bfloat16)
        setattr(case, name, unaligned(getattr(case, name)))
        case.run(emulation.embed_layer_norm)
        yield f"embed, unaligned {name}", case.error()


def attention(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for i, prefix in enumerate((0, 5, 65, 129)):
        dtype = (torch.float16, torch.bfloat16)[i % 2]
        for text, append in ((None, False), ([0, 1, 3, 2, 1], False), ([1, 2, 3, 2, 1], True)):
            case = attention_cases.make_case([3, 2], prefix, 16, dtype, text=text, append=append, heads=2)
            case.run(emulation.prefix_attention)
            yield f"attention, {dtype}, prefix {prefix}, text {text}, append {append}", case.error()
    case = attention_cases.make_case([19], 7, 16, torch.bfloat16, text=[(5 * i) % 37 for i in range(19)], heads=1)
    case.run(emulation.prefix_attention)
    yield "attention, two tiles, text beyond one chunk", case.error()
    for splits in (1, 2):
        case = attention_cases.make_case([34], 140, 16, torch.float16, tile_rows=64, heads=1).split(emulation, splits)
        case.run(emulation.prefix_attention)
        yield f"attention, rows of three warps, {splits} parts", case.error()
    for prefix, text in itertools.product((0, 65, 200), (None, [0, 1, 3, 2, 1])):
        case = attention_cases.make_case([3, 2], prefix, 16, torch.bfloat16, text=text, heads=2).split(emulation, 3)
        for launch in range(2):
            case.out.fill_(torch.nan)
            case.run(emulation.prefix_attention)
            yield f"attention, prefix {prefix} in 3 parts, text {text}, launch {launch}", case.error()
    case = attention_cases.make_case([2, 1], 20, 16, torch.bfloat16, text=[1, 2, 1], append=True)
    left_out = case.leave_out(0)
    case.run(emulation.prefix_attention)
    yield "attention, rows left out", float(not case.out[left_out].isnan().all()) * 2
    case = attention_cases.make_case([3], 256, 16, torch.bfloat16).cancel().split(emulation, 4)
    results = []
    for order in ORDERS:
        emulation.set_order(order)
        results.append(case.run(emulation.prefix_attention).clone())
        yield f"attention, merged the same in order {order}", float(not torch.equal(results[0], results[-1])) * 2


def linear(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    dtypes = (torch.float16, torch.bfloat16)
    for dtype, weights in itertools.product(dtypes, linear_cases.FORMATS):
        case = linear_cases.make_case(3, 13, 64, dtype, weights=weights, residual=True, activation="gelu", padding=1)
        case.run(emulation.linear)
        yield f"linear, {dtype}, weights {weights}", case.error()
    for rows, columns, depth in ((8, 8, 288), (5, 8, 1888), (17, 9, 1888)):
        case = linear_cases.make_case(rows, columns, depth, torch.bfloat16)
        case.run(emulation.linear)
        yield f"linear, {rows} x {columns} x {depth}", case.error()


def norm_linear(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for weights, rows, depth in (("same", 4, 288), ("int8", 3, 1024), ("same", 1, 32)):
        case = linear_cases.make_norm_case(
            rows, 19, depth, torch.bfloat16, weights=weights, padding=1, activation="gelu"
        )
        case.run(emulation.norm_linear)
        yield f"norm_linear, {rows} x {depth}, weights {weights}", case.error()
        yield f"norm_linear, {rows} x {depth}, as two kernels", norm_linear_as_two(emulation, case)
    for seed in range(6):  # bits that another order of sums changes
        case = linear_cases.make_norm_case(1, 8, 1024, torch.float16, seed=seed).cancelled(emulation.norm_linear)
        case.run(emulation.norm_linear)
        yield f"norm_linear, cancelled, seed {seed}", norm_linear_as_two(emulation, case)


def norm_linear_as_two(emulation: ModuleType, case: linear_cases.NormCase) -> float:
    """Return 0 where two kernels gave the same bits, 2 otherwise."""
    twin = case.by_two(emulation.add_layer_norm, emulation.linear)
    return 2 * float(not torch.equal(twin.of.out, case.of.out) or not torch.equal(twin.normalised, case.normalised))


def linear_wide(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    """Four tiles per block, and a last block that has two."""
    case = linear_cases.make_case(1, 8201, 32, torch.bfloat16)
    case.run(emulation.linear)
    yield "linear, 8201 columns", case.error()


def select(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for rows, vocab, choices, weights in ((2, 5, 2, "same"), (3, 270, 10, "int8"), (17, 129, 1, "float8")):
        case = select_cases.make_case(
            rows, vocab, 64, torch.bfloat16, emulation.select_workspace, choices=choices, weights=weights, draw=True,
            logits=vocab == 270, temperature=0.5, seed=rows,
        )  # fmt: skip
        yield f"select, {choices} of {vocab}, {rows} rows", case.run(emulation.head_select).error()
    yield from few_tokens(emulation, 300, [2, 127, 256, 270, 285, 299])


def select_wide(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    """More parts than a warp has lanes."""
    yield from few_tokens(emulation, 4200, [1, 4110, 4199])


def few_tokens(emulation: ModuleType, vocab: int, tokens: list[int]) -> Iterator[tuple[str, float]]:
    """A distribution on few tokens, each of which is the answer to some quantile; most parts have none."""
    case = select_cases.make_case(12, vocab, 64, torch.float16, emulation.select_workspace, choices=3, draw=True)
    case.bias[:] = -torch.inf
    case.bias[tokens] = 0
    yield f"select, few tokens of {vocab}", case.run(emulation.head_select).error()


def attention_f32(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for prefix, splits, (text, append) in itertools.product(
        (0, 5, 33, 96), (1, 3), ((None, False), ([0, 1, 35, 2, 1], False), ([1, 2, 3, 2, 1], True))
    ):
        case = attention_cases.make_case([3, 2], prefix, 12, torch.float32, text=text, append=append)
        case.split(emulation, splits).run(emulation.prefix_attention)
        yield f"attention, float32, prefix {prefix} in {splits} parts, text {text}, append {append}", case.error()
    case = attention_cases.make_case([18], 40, 44, torch.float32, tile_rows=64, heads=1)
    case.run(emulation.prefix_attention)
    yield "attention, float32, rows of five warps", case.error()


def attention_int8(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for rows, prefix, splits, tile_rows in ((3, 0, 1, 16), (2, 65, 1, 16), (2, 130, 2, 16), (18, 130, 1, 64)):
        text = [i % 3 for i in range(rows)]
        case = attention_cases.make_case(
            [rows], prefix, 64, torch.bfloat16, text=text, heads=1, tile_rows=tile_rows
        ).quantize()
        case.split(emulation, splits).run(emulation.prefix_attention)
        yield f"attention, int8 prefix {prefix} in {splits} parts, {rows} rows", case.error()


def search(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for vocab, beams, length_penalty, early_stopping in (
        (5, 3, 2.0, "never"),
        (40, 4, -1.0, False),
        (60, 16, 0.5, True),
    ):
        case = search_cases.make_case(
            vocab, seed=beams, num_beams=beams, num_return_sequences=beams, length_penalty=length_penalty,
            length_penalty_form="paper" if beams == 4 else "transformers", early_stopping=early_stopping,
        )  # fmt: skip
        yield f"search, {beams} beams", case.error(case.on_device(emulation, case.likeliest(min(vocab, 2 * beams))))
    case = search_cases.make_case(12, [[3]], seed=1, num_beams=5, max_new_tokens=40, eos_bias=-4.0, length_penalty=0.0)
    yield "search, long texts", case.error(case.on_device(emulation, case.likeliest(10)))
    for seed, (top_k, top_p, min_p) in enumerate(((0, 1.0, 0.0), (3, 1.0, 0.0), (40, 0.7, 0.0), (50, 1.0, 0.2))):
        case = search_cases.make_case(
            64, seed=seed, do_sample=True, temperature=1.5, top_k=top_k, top_p=top_p, min_p=min_p,
            num_return_sequences=3,
        )  # fmt: skip
        choose = case.likeliest(top_k + 1 if top_k else 64)
        yield f"search, samples of {top_k}", case.error(case.on_device(emulation, choose))
    case = search_cases.make_case(20)
    yield "search, greedy", case.error(case.on_device(emulation, case.likeliest(1)))
    for options, count in (
        ({}, 1),
        ({"num_beams": 3}, 6),
        ({"do_sample": True, "top_k": 4, "num_return_sequences": 2}, 5),
    ):
        case = search_cases.make_case(64, [[3, 4], [5], [6, 7, 8], [9], [3]], seed=count, eos_bias=4.0, **options)
        yield f"search, few at once, {count}", case.error(case.on_device(emulation, case.likeliest(count), slots=2))
    case, expected = search_cases.equal_choices()
    found = [ids for ids, *_ in case.on_device(emulation, case.likeliest(4))[0]]
    yield "search, ties", 0.0 if found == expected else float("inf")


def decode(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for rows, heads, cluster, layers, prefix in ((1, 2, 2, 2, 81), (3, 3, 3, 1, 0)):
        case = decode_cases.make_case(
            rows, weights="int8", heads=heads, intermediate=128 * heads, cluster=cluster, layers=layers, prefix=prefix,
            longest=4,
        )  # fmt: skip
        yield f"decode, {rows} rows", case.run(emulation).error()
    case = decode_cases.make_case(2, weights="int8", heads=2, cluster=2, layers=1, prefix=20).leave_out(0)
    yield "decode, a row without a prefix", case.run(emulation).error()


def persistent(emulation: ModuleType) -> Iterator[tuple[str, float]]:
    for beams in (1, 2):
        case = persistent_cases.make_persistent(
            1, num_beams=beams, max_new_tokens=2, model={"dtype": torch.bfloat16, "weights": "int8", "layers": 1}
        )
        try:
            same = persistent_cases.same(case.run(emulation), case.expected())
        except ValueError:  # logits that are no numbers
            same = False
        yield f"persistent, {beams} beams", float(not same) * 2


CASES = {
    "norm": norm,
    "tile_product": tile_product,
    "activation": activation,
    "embed": embed,
    "attention": attention,
    "attention_f32": attention_f32,
    "linear": linear,
    "norm_linear": norm_linear,
    "linear_wide": linear_wide,
    "select": select,
    "select_wide": select_wide,
    "attention_int8": attention_int8,
    "search": search,
    "decode": decode,
    "persistent": persistent,
}


def main(module: str, sanitizer: str, kernel: str) -> None:
    emulation = load(Path(module))
    # Races are found in every order; what one order hides from the other checks, another shows.
    orders = ("forward",) if sanitizer == "thread" else ORDERS
    for order, late_copies in itertools.product(orders, (True, False)):
        emulation.set_order(order, seed=1, late_copies=late_copies)
        for name, error in CASES[kernel](emulation):
            if not error <= 1:
                sys.exit(f"{name}, {order}: {error:.1f} times the tolerance")


def serve(sanitizer: str) -> None:
    """Runs what lines of standard input say, "MODULE<tab>KERNEL<tab>LOG", each in a fork, which a fault may kill.

    Importing torch under a sanitizer takes longer than most cases. Answers with a line: the exit code.
    """
    for line in sys.stdin:
        module, kernel, log = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_PROF, 300)  # of CPU time, so that a busy machine ends nobody
            signal.alarm(3000)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = 1
            try:
                main(module, sanitizer, kernel)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
