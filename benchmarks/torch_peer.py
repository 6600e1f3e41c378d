"""The norms of PyTorch: its functions, on as many threads as there are cores.

An activation with spatial axes has PyTorch's order of axes. In memory, it is channels last for batch norm,
which has kernels for this layout, and channels first for group and instance norm, their native layout.
Parameters are float32, except for RMS norm: its fused kernel needs them in the dtype of x.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import jax
import numpy as np

from benchmarks.cases import EPSILON, Case, Data, Phase
from benchmarks.measure import Program

torch: Any = import_module("torch")  # not installed everywhere
F = torch.nn.functional
DEVICE = "cpu" if jax.default_backend() == "cpu" else "cuda"


def torch_program(case: Case, phase: Phase, data: Data) -> Program:
    """Like `measure.in_jax`, with gradients from autograd."""
    torch.set_num_threads(os.cpu_count() or 1)
    dtype = getattr(torch, str(data.x.dtype))
    param_dtype = dtype if case.norm == "rms" else torch.float32

    def activation(a: np.ndarray) -> Any:
        moved = torch.tensor(a.astype(np.float32), dtype=dtype, device=DEVICE).movedim(-1, 1)
        if case.norm in ("layer", "rms"):
            return moved.movedim(1, -1)
        return moved if case.norm == "batch" else moved.contiguous()

    def back(a: Any) -> np.ndarray:
        a = a.movedim(1, -1) if a.ndim > 1 and case.norm not in ("layer", "rms") else a
        return a.detach().double().cpu().numpy()

    x, dy = (activation(a) for a in (data.x, data.dy))
    parameters = [torch.tensor(p, dtype=param_dtype, device=DEVICE) for p in data.parameters]
    stats = [torch.tensor(s, device=DEVICE) for s in data.stats]
    norm = norm_of(case, phase != "eval", stats)
    leaves = [a.requires_grad_(phase == "both") for a in (x, *parameters)]

    def call() -> tuple[Any, ...]:
        y = norm(*leaves)
        return (y, *torch.autograd.grad(y, leaves, dy)) if phase == "both" else (y,)

    def run(times: int) -> tuple[Any, ...]:
        result = call()
        for _ in range(times - 1):
            result = call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    return Program(run, lambda: [back(a) for a in call()])


def norm_of(case: Case, train: bool, stats: list[Any]) -> Callable[..., Any]:
    """Returns a function of x, scale and bias that updates the running statistics in place."""
    norms: dict[str, Callable[..., Any]] = {
        "batch": lambda x, *p: F.batch_norm(x, *stats, *p, train, 0.01, EPSILON),
        "layer": lambda x, *p: F.layer_norm(x, x.shape[-1:], *p, EPSILON),
        "rms": lambda x, *p: F.rms_norm(x, x.shape[-1:], *p, EPSILON),
        "group": lambda x, *p: F.group_norm(x, case.num_groups, *p, EPSILON),
        "instance": lambda x, *p: F.instance_norm(x, None, None, *p, eps=EPSILON),
    }
    return norms[case.norm]
