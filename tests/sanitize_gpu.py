"""Every kind of GPU kernel once, at small sizes: the program that `make sanitize` runs under compute-sanitizer."""

import os

# Each tensor is an allocation of its own, so that an access beside it is seen.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from ext_cases import Draw, bare_conv, bare_scan, conv_case, on_device, scan_case, strange
from mambalab.ext import backends, rms_norm, step_
from test_ext_norm import drawn, results
from test_ext_step import mixer, states, stepped

HALF, SHORT, DOUBLE = torch.float16, torch.bfloat16, torch.float64
# Both with channels in whole fours, which are read together, and without.
SCANS = {
    "plain": {"d": 36, "n": 16, "length": 35},
    "bare": {"d": 5, "n": 1, "length": 18, "without": ("D", "z", "delta_bias", "initial_state")},
    "static": {"d": 36, "n": 16, "length": 19, "selective": "", "discretisation": "zoh"},
    "static B": {"d": 7, "n": 4, "length": 17, "selective": "ΔC"},
    "bfloat16": {"d": 36, "n": 16, "length": 35, "dtype": SHORT},
    "float16, odd": {"d": 33, "n": 17, "length": 33, "dtype": HALF, "discretisation": "zoh"},
    "float64": {"d": 6, "n": 3, "length": 17, "dtype": DOUBLE},
    "many states": {"d": 36, "n": 64, "length": 19},
    "more states than a block has": {"d": 5, "n": 100, "length": 3},
    "packed": {"b": 1, "d": 36, "n": 16, "length": 50, "bounds": (0, 17, 17, 49, 50)},
    "packed, bfloat16": {"b": 1, "d": 9, "n": 16, "length": 50, "bounds": (0, 17, 17, 49, 50), "dtype": SHORT},
    "cut": {"b": 1, "d": 36, "n": 16, "length": 1700},
    "cut, odd": {"b": 1, "d": 5, "n": 3, "length": 1701, "selective": "B", "dtype": SHORT},
    "packed and cut": {"b": 1, "d": 5, "n": 4, "length": 3403, "bounds": (0, 1701, 3403)},
}
CONVS = {
    "plain": {"d": 36, "length": 35, "activation": "silu"},
    "bare": {"d": 5, "length": 18, "without": ("bias", "initial_state"), "k": 1},
    "bfloat16": {"d": 64, "length": 35, "activation": "silu", "dtype": SHORT},
    "float16, odd": {"d": 33, "length": 35, "k": 3, "dtype": HALF},
    "float64": {"d": 4, "length": 9, "dtype": DOUBLE},
    "packed": {"b": 1, "d": 36, "length": 50, "bounds": (0, 2, 2, 49, 50), "activation": "silu"},
    "packed, odd": {"b": 1, "d": 5, "length": 50, "bounds": (0, 2, 2, 49, 50), "dtype": SHORT},
    "long": {"b": 1, "d": 36, "length": 700},
}
NORMS = {"odd": (67, 19), "narrow": (40, 64), "wide": (9, 768), "widest": (3, 5000)}
STEPS = {"few rows": (2, "ΔBC"), "many rows": (10, "ΔBC"), "static": (2, "Δ"), "no Δ": (3, "BC")}


def calls(name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is run on the backend called `name`, each with a title."""
    for title, settings in SCANS.items():
        case = scan_case(**settings).on("cuda")
        yield f"scan: {title}", partial(case.run, bare_scan(name))
    case = scan_case(length=35, d=8, n=4)
    kept = {key: None if tensor is None else strange(tensor) for key, tensor in case.tensors.items()}
    case.tensors.update(kept)
    yield "scan: strange strides", partial(case.on("cuda").run, bare_scan(name))
    for title, settings in CONVS.items():
        yield f"conv: {title}", partial(conv_case(**settings).on("cuda").run, bare_conv(name))
    for title, (rows, columns) in NORMS.items():
        for dtype in (torch.float32, SHORT):
            inputs = (drawn(rows, columns), drawn(columns, dtype=dtype), drawn(rows, columns, seed=1))
            norm = partial(rms_norm, backend=name)
            yield f"norm: {title}, {dtype}", partial(results, norm, *(tensor.cuda() for tensor in inputs))
    for title, (rows, selective) in STEPS.items():
        for dtype in (torch.float32, SHORT):
            yield f"step: {title}, {dtype}", partial(steps, name, rows, selective, dtype)


def steps(name: str, rows: int, selective: str, dtype: torch.dtype) -> None:
    """Two tokens of a mixer."""
    given = mixer(dtype, selective, d=36, n=16, r=4)
    x = Draw(2)(rows, 2, 36, dtype=dtype).cuda()
    there = {key: None if tensor is None else on_device(tensor, "cuda") for key, tensor in given.items()}
    conv_state, scan_state = (state.cuda() for state in states(given, rows))
    with torch.no_grad():
        stepped(partial(step_, backend=name), there, x, x, conv_state, scan_state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="cuda", choices=[r.name for r in backends.BACKENDS if r.device == "cuda"])
    parser.add_argument("--only", default="", help="run what has this in its title")
    chosen = parser.parse_args()
    count = 0
    for title, call in calls(chosen.backend):
        if chosen.only in title:
            print(title, flush=True)
            call()
            torch.cuda.synchronize()
            count += 1
    print(f"{count} calls on {chosen.backend}")


if __name__ == "__main__":
    main()
