"""The norms in NumPy at double precision, written from the papers; shares no code with the package.

Batch norm follows Ioffe and Szegedy (2015): algorithm 1, and the equations of section 3 for the gradient.
It also supports a mask (only unmasked values enter the statistics, but all values are normalized),
complex values, and running statistics as further outputs. The tangent is derived separately from the
forward equations; `tests/test_oracle.py` compares each with finite differences and with the other. The
other norms have only a value, and are differentiated by differences.

Complex cotangents follow JAX: a change dL of the loss is Re Σ cotangent · tangent, unconjugated.
"""

import dataclasses
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

Array = Any


class Moments(NamedTuple):
    """Moments of unmasked values, reduced axes kept; with no values the mean is 0 and var is 1."""

    mean: np.ndarray
    var: np.ndarray
    count: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]


class Primals(NamedTuple):
    """The inputs of batch norm, their tangents, or their gradients."""

    x: Array
    mean: Array
    var: Array
    scale: Array
    bias: Array


class Outputs(NamedTuple):
    """The outputs of batch norm (y and the running statistics), their tangents, or their cotangents."""

    y: Array
    mean: Array
    var: Array


def wide(x: Array) -> Any:
    """``x`` as float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def complement(axes: int | tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """The axes of an array of rank ``ndim`` that are not ``axes``."""
    kept = {axis % ndim for axis in (axes if isinstance(axes, tuple) else (axes,))}
    return tuple(axis for axis in range(ndim) if axis not in kept)


def moments(x: Array, axes: int | tuple[int, ...], mask: Array = None) -> Moments:
    """Mean, biased variance and count over ``axes`` of the values where ``mask`` is not zero."""
    x = wide(x)
    axes = axes if isinstance(axes, tuple) else (axes,)
    counts = np.broadcast_to(True if mask is None else np.asarray(mask) != 0, x.shape)
    values = np.where(counts, x, 0)
    count = counts.sum(axes, keepdims=True).astype(np.float64)
    mean = values.sum(axes, keepdims=True) / np.maximum(count, 1)
    var = (np.abs(np.where(counts, x - mean, 0)) ** 2).sum(axes, keepdims=True)
    return Moments(mean, np.where(count > 0, var / np.maximum(count, 1), 1.0), count)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """A batch norm with its options, and its value, tangent and gradient at given `Primals`."""

    feature_axes: int | tuple[int, ...] = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    unbiased: bool = False
    mask: Array = None

    def value(self, at: Primals) -> Outputs:
        """Returns y and the new running statistics."""
        z = self._known(at)
        rho = self._old_weight(z)
        return Outputs(
            z.unit * z.gamma + z.beta,
            self._feature(rho * z.old_mean + (1 - rho) * z.batch.mean, at),
            self._feature(rho * z.old_var + (1 - rho) * z.bessel * z.batch.var, at),
        )

    def tangent(self, at: Primals, along: Primals) -> Outputs:
        """The derivative of the outputs along ``along``, by the chain rule through μ and σ²."""
        z = self._known(at)
        dx, dmean, dvar, dgamma, dbeta = self._known_direction(along, z)
        dmu = np.where(z.counts, dx, 0).sum(z.axes, keepdims=True) / z.n
        along_x: Any = np.where(z.counts, 2 * z.centered.conj() * dx, 0)
        dsigma2 = along_x.real.sum(z.axes, keepdims=True) / z.n
        dinv = -0.5 * z.inv**3 * dsigma2
        dunit = np.where(z.unread, 0, (dx - dmu) * z.inv + z.centered * dinv)
        rho = self._old_weight(z)
        return Outputs(
            dunit * z.gamma + z.unit * dgamma + dbeta,
            self._feature(rho * dmean + (1 - rho) * dmu, at),
            self._feature(rho * dvar + (1 - rho) * z.bessel * dsigma2, at),
        )

    def gradient(self, at: Primals, cotangents: Outputs) -> Primals:
        """Gradients of Re Σ cotangents · outputs, in closed form."""
        z = self._known(at)
        dy = wide(cotangents.y)
        ct_mean, ct_var = (self._spread(wide(c), z) for c in cotangents[1:])
        rho = self._old_weight(z)
        through = np.where(z.unread, 0, dy * z.gamma)  # ∂L/∂x̂
        to_sigma2 = -0.5 * z.inv**3 * (through * z.centered).real.sum(z.axes, keepdims=True)
        to_sigma2 = to_sigma2 + (1 - rho) * z.bessel * ct_var.real
        to_mu = -z.inv * through.sum(z.axes, keepdims=True) + (1 - rho) * ct_mean
        shared = to_mu / z.n + to_sigma2 * 2 * z.centered.conj() / z.n
        dx = through * z.inv + np.where(z.counts, shared, 0)
        ours = Primals(
            dx,
            self._feature(rho * ct_mean, at),
            self._feature(rho * ct_var, at),
            self._feature((dy * z.unit).sum(z.axes, keepdims=True), at),
            self._feature(dy.sum(z.axes, keepdims=True), at),
        )
        real = (g if np.iscomplexobj(a) else g.real for g, a in zip(ours, at, strict=True))
        return Primals._make(real)

    def inference(self, at: Primals) -> np.ndarray:
        """Returns y from the running statistics."""
        z = self._known(at)
        return (wide(at.x) - z.old_mean) / np.sqrt(z.old_var + self.epsilon) * z.gamma + z.beta

    # All arrays below have the rank of x, with size 1 along the reduced axes.

    def _known(self, at: Primals) -> SimpleNamespace:
        x = wide(at.x)
        axes = complement(self.feature_axes, x.ndim)
        counts = np.broadcast_to(True if self.mask is None else np.asarray(self.mask) != 0, x.shape)
        batch = moments(x, axes, self.mask)
        unread = ~counts & ~np.isfinite(x)  # a masked NaN reads as the mean
        centered = np.where(unread, 0, np.where(unread, 0, x) - batch.mean)
        inv = 1 / np.sqrt(batch.var + self.epsilon)
        n = np.maximum(batch.count, 1)
        bessel = n / np.maximum(n - 1, 1) if self.unbiased else np.ones_like(n)
        z = SimpleNamespace(
            axes=axes, counts=counts, batch=batch, unread=unread, n=n, bessel=bessel
        )
        z.centered, z.inv, z.unit = centered, inv, centered * inv
        z.old_mean, z.old_var, z.gamma, z.beta = (self._spread(wide(a), z) for a in at[1:])
        return z

    def _known_direction(self, along: Primals, z: SimpleNamespace) -> list[np.ndarray]:
        return [wide(along.x), *(self._spread(wide(a), z) for a in along[1:])]

    def _old_weight(self, z: SimpleNamespace) -> np.ndarray:
        return np.where(z.batch.count > 0, self.momentum, 1.0)  # no values, no update

    @staticmethod
    def _spread(feature: np.ndarray, z: SimpleNamespace) -> Any:
        return np.expand_dims(feature, z.axes)

    def _feature(self, a: np.ndarray, at: Primals) -> np.ndarray:
        ndim = np.asarray(at.x).ndim
        return a.squeeze(complement(self.feature_axes, ndim)) if a.ndim == ndim else a


# --- the other norms -----------------------------------------------------------------------------


def norm_of_cells(
    x: Array, cells: Array, *, epsilon: float, mask: Array = None, statistic: str = "variance"
) -> np.ndarray:
    """``x`` divided by the root of a statistic of all elements with the same number in ``cells``.

    The statistic is "variance" (x less its mean; Ba, Kiros and Hinton, 2016; Wu and He, 2018), "mean
    square" (Zhang and Sennrich, 2019) or "square length" (Salimans and Kingma, 2016), plus ``epsilon``. A
    fully masked cell has mean 0 and statistic 1.
    """
    x, bins = wide(x), cells.max(initial=-1) + 1
    counts = np.broadcast_to(True if mask is None else np.asarray(mask) != 0, x.shape)

    def total(values: Any) -> Any:
        values = np.where(counts, values, 0)
        parts = [
            np.bincount(cells.ravel(), part.ravel(), bins) for part in (values.real, values.imag)
        ]
        return parts[0] + 1j * parts[1] if np.iscomplexobj(values) else parts[0]

    count = total(np.ones(x.shape))
    n = np.maximum(count, 1)
    mean = (total(x) / n if statistic == "variance" else np.zeros_like(n))[cells]
    centered = np.where(counts | np.isfinite(x), x - mean, 0)  # a masked NaN reads as the mean
    squares = total(np.abs(centered) ** 2) / (1 if statistic == "square length" else n)
    return centered / np.sqrt(np.where(count > 0, squares, 1)[cells] + epsilon)


def local_response_norm(
    x: Array,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    channel: int = -1,
    mask: Array = None,
) -> np.ndarray:
    """Krizhevsky, Sutskever and Hinton (2012), section 3.3, with α divided by ``size`` as in PyTorch."""
    counts = np.broadcast_to(True if mask is None else np.asarray(mask) != 0, np.shape(x))
    x, counts = np.moveaxis(wide(x), channel, -1), np.moveaxis(counts, channel, -1)
    counted, y = np.where(counts, x, 0), np.empty_like(x)
    for i in range(x.shape[-1]):
        first = i - size // 2
        window = counted[..., max(first, 0) : first + size]
        y[..., i] = x[..., i] / (k + alpha / size * (np.abs(window) ** 2).sum(-1)) ** beta
    return np.moveaxis(y, -1, channel)


def typical_moments(x: Array, unbiased: bool = False, mask: Array = None) -> tuple[Array, ...]:
    """Mean and variance of each (example, channel) of (N, ..., C), averaged over examples with values.

    Also returns the number of these examples for each channel.
    """
    x = wide(x)
    counts = np.broadcast_to(True if mask is None else np.asarray(mask) != 0, x.shape)
    averages = []
    for c in range(x.shape[-1]):
        kept = [x[i, ..., c][counts[i, ..., c]] for i in range(len(x))]
        kept = [values for values in kept if values.size]
        variances = [v.var(ddof=1 if unbiased and v.size > 1 else 0) for v in kept]
        means = [v.mean() for v in kept]
        averages.append((sum(means), sum(variances), len(kept)))
    mean, var, instances = map(np.array, zip(*averages, strict=True))
    return mean / np.maximum(instances, 1), var / np.maximum(instances, 1), instances


def power_iteration(kernel: Array, u: Array, steps: int) -> tuple[float, np.ndarray]:
    """Returns σ and the next u for (..., outputs): Miyato et al. (2018), algorithm 1."""
    matrix, u = wide(kernel).reshape(-1, np.shape(kernel)[-1]), wide(u).ravel()
    v = np.zeros(len(matrix))
    for _ in range(steps):
        v = matrix @ u.conj()  # has unit length; for a complex kernel u = v* W
        v = v / np.linalg.norm(v)
        u = v.conj() @ matrix
        u = u / np.linalg.norm(u)
    return (v.conj() @ matrix @ u.conj()).real, u[None]


def largest_singular_value(kernel: Array) -> float:
    """The largest singular value of (..., outputs) as a matrix."""
    return np.linalg.svd(wide(kernel).reshape(-1, np.shape(kernel)[-1]), compute_uv=False)[0]


# --- derivatives without a closed form here ------------------------------------------------------


def slope(f: Any, at: Any, along: Any, h: float = 1e-5) -> Any:
    """The derivative of ``f(*at)`` along ``along``, by central differences; accurate to about 1e-9."""
    ends = (f(*(wide(a) + s * wide(d) for a, d in zip(at, along, strict=True))) for s in (h, -h))
    return (next(ends) - next(ends)) / (2 * h)


def gradient(f: Any, at: Any, h: float = 1e-5) -> list[np.ndarray]:
    """The derivative of the scalar ``f(*at)`` with respect to each entry."""
    zeros = [np.zeros(np.shape(a)) for a in at]
    gradients = [z.copy() for z in zeros]
    for i, g in enumerate(gradients):
        for index in np.ndindex(g.shape):
            zeros[i][index] = 1
            g[index] = slope(f, at, zeros, h)
            zeros[i][index] = 0
    return gradients


def hessian_times(f: Any, at: Any, along: Any, h: float = 4e-4) -> list[np.ndarray]:
    """The second derivative of the scalar ``f(*at)``, once along ``along``; accurate to about 1e-6."""
    return gradient(lambda *here: slope(f, here, along, h), at, h)


# --- comparison ----------------------------------------------------------------------------------

# For float32 results: sums of up to 50000 terms of mixed sign and a reciprocal square root, each with
# about ten roundings of 6e-8, relative to the largest entry. Narrower results are rounded once, by half
# their eps, so a statistic that was rounded to bfloat16 on the way shows in a float32 result.
FLOAT32_TOLERANCE = 2e-5


def assert_close(got: Array, want: Array, tolerance: float = FLOAT32_TOLERANCE) -> None:
    """Checks ``got`` up to float32 arithmetic and one rounding to the dtype of ``got``."""
    want = np.asarray(want)
    assert got.shape == want.shape
    name = str(got.dtype)
    rounding = {"bfloat16": 2.0**-8, "float16": 2.0**-10}.get(name, 0.0)
    size = np.abs(want).max(initial=0.0)
    smallest = 6e-8 if name == "float16" else 0.0  # the spacing of its subnormals
    np.testing.assert_allclose(
        wide(got), want, rtol=rounding, atol=tolerance * max(size, 1e-3) + smallest
    )
