"""The reference for every contestant: norms and their gradients in closed form, in NumPy float64."""

import numpy as np

from benchmarks.cases import EPSILON, Case, Data, Phase

# Relative to the largest value. bfloat16 has 8 bits of precision, and peers round statistics to it, too.
TOLERANCES = {"float32": 1e-3, "bfloat16": 2e-2}
NAMES = ("y", "dx", "dscale", "dbias")


def truth(case: Case, phase: Phase, data: Data) -> list[np.ndarray]:
    """Returns y, and in phase both also dx, dscale and (if there is a bias) dbias."""
    x, dy = (np.asarray(a, np.float64) for a in (data.x, data.dy))
    scale, bias = (*(np.asarray(p, np.float64) for p in data.parameters), np.float64(0))[:2]
    if phase == "eval":
        mean, var = (np.asarray(s, np.float64) for s in data.stats)
        return [(x - mean) / np.sqrt(var + EPSILON) * scale + bias]

    shape = case.shape
    if case.norm == "group":
        shape = (*shape[:-1], case.num_groups, shape[-1] // case.num_groups)
    axes = {
        "batch": tuple(range(x.ndim - 1)),
        "instance": tuple(range(1, x.ndim - 1)),
        "group": (*range(1, x.ndim - 1), x.ndim),
    }.get(case.norm, (-1,))

    def average(a: np.ndarray) -> np.ndarray:
        mean = a.reshape(shape).mean(axes, keepdims=True)
        return np.broadcast_to(mean, shape).reshape(x.shape)

    centred = case.norm != "rms"
    deviation = x - average(x) if centred else x
    inverse = 1 / np.sqrt(average(deviation**2) + EPSILON)
    normalized = deviation * inverse
    y = normalized * scale + bias
    if phase == "forward":
        return [y]
    g = dy * scale
    dx = inverse * (g - centred * average(g) - normalized * average(g * normalized))
    others = tuple(range(x.ndim - 1))
    gradients = [(dy * normalized).sum(others), dy.sum(others)]
    return [y, dx, *gradients[: len(data.parameters)]]


def check(
    who: str, case: Case, phase: Phase, dtype: str, found: list[np.ndarray], right: list[np.ndarray]
) -> None:
    """Checks a contestant's results, without which its times mean nothing.

    Raises:
        RuntimeError: If a value differs by more than the tolerance, or the number of results is wrong.
    """
    where = f"{who}, {case.norm} norm of {case.shape} {dtype}, {phase}"
    if len(found) != len(right):
        raise RuntimeError(f"{where}: {len(found)} results instead of {len(right)}")
    for name, mine, true in zip(NAMES, found, right, strict=False):
        limit = TOLERANCES[dtype] * np.abs(true).max()
        difference = np.abs(np.asarray(mine, np.float64) - true).max()
        if not difference <= limit:  # also rejects NaN
            raise RuntimeError(f"{where}: {name} differs by {difference:.3g}, limit {limit:.3g}")
