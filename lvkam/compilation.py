"""Kernels, compiled: pure tensor functions that `torch.compile` fuses where a compiler works.

The same function serves as it is, so that compiled and plain results can be compared, and as the fallback.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental import _config as symbolic_shapes

RECOMPILE_LIMIT = 64
"""Variants of one kernel (bases, degrees, grid sizes, a batch of one) in a process; more is an error, not a
silent return to slow code."""

ROWS = 128
"""Rows of matrices come in multiples of it, where some can be left out."""

_INLINED: dict[str, str | int | bool | Callable[..., Any]] = {
    # intermediate results are computed where they are needed, however often, rather than written to memory
    "realize_opcount_threshold": 1000,
    "realize_reads_threshold": 1000,
}


@functools.cache
def compiled(function: Callable[..., Any], inline: bool = True) -> Callable[..., Any]:
    """The kernel, compiled when first called, for sizes that may vary from call to call.

    Args:
        function: what the kernel computes.
        inline: not for a long chain of steps, each of which needs the last one more than once: the compiler would
            take time exponential in their number.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    # sizes that happen to be equal at first, as those of a batch and of a layer, need not stay so
    symbolic_shapes.use_duck_shape = False
    return torch.compile(function, dynamic=True, fullgraph=True, options=_INLINED if inline else None)


def fix_last_size(*tensors: torch.Tensor) -> None:
    """Let kernels be compiled for just this size of the last dimension: loops of known length are faster."""
    for tensor in tensors:
        torch._dynamo.mark_static(tensor, tensor.ndim - 1)


def rows_kept(kept: torch.Tensor, multiple: int = ROWS) -> torch.Tensor:
    """Rows of a mask, (N,), and some more that their number be a multiple, or all: (R,), each of them once.

    A CPU's library makes a kernel for each size that a product of bfloat16 has, and takes longer for it than for
    the product.
    """
    rows = kept.nonzero().squeeze(1)
    missing = -len(rows) % multiple
    return torch.cat((rows, (~kept).nonzero().squeeze(1)[:missing])) if missing else rows


@functools.cache
def compiler_problem(device_type: str = "cpu") -> str | None:
    """Why nothing can be compiled for a kind of device, in one line, or None: found by compiling something."""
    if torch._dynamo.config.disable:
        return "TORCHDYNAMO_DISABLE is set"
    # torch's first compilation looks for CUDA's compiler, and warns where there is one but no GPU: no matter here
    about_cuda = logging.getLogger("torch.utils.cpp_extension")
    level = about_cuda.level
    about_cuda.setLevel(logging.ERROR)
    try:
        torch.compile(lambda x: x.exp() + 1, fullgraph=True)(torch.zeros(17, device=device_type))
    except (RuntimeError, OSError) as error:  # no compiler, no headers, no folder for its files, ...
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join(lines[:2]) or type(error).__name__
    finally:
        about_cuda.setLevel(level)
    return None
