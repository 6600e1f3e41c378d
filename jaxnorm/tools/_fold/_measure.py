"""Measures whether a layer with a norm folded into it computes what the two compute one after the other."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ...core._precision import real_dtype, upcast
from .._model._intercept import LayerCall
from .._model._interface import Model, Run
from .._model._rebuilt import rebuilt
from .._model._reuse import reused
from .._model._types import Batch, Layer, Tree
from ._arrays import PairArrays
from ._dataflow import Flow
from ._eligibility import Pair, axes_from_the_end
from ._folded import Arrays, Dtypes, array_like, set_arrays, what_is_left


class Fold(NamedTuple):
    """A batch norm, the layer that it folds into, and what becomes of both."""

    pair: Pair
    dtypes: Dtypes  # that the norm's result is promoted with
    axes: tuple[int, ...]  # of the features, counted from the end


def fold_of(flow: Flow, pair: Pair) -> Fold:
    """How the norm of a pair folds."""
    names = ["scale", "bias"]
    if isinstance(flow.seen[pair.norm].call.layer, nnx.BatchNorm):  # Flax's, in NNX
        names += ["mean", "var"]
    dtypes = {a.dtype.name for n, a in flow.arrays(pair.norm).items() if n in names}
    return Fold(pair, tuple(sorted(dtypes)), axes_from_the_end(flow, pair.norm))


Measure: TypeAlias = Callable[[Tree, Batch, Any, Sequence[PairArrays]], tuple[Tree, dict[str, str]]]
"""A function of a model's state, a batch, random keys, and the arrays of each fold."""


class Difference(NamedTuple):
    """The largest absolute difference between two results, and the largest absolute value in the first."""

    largest: float
    scale: float
    tolerance: float  # relative to the scale

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the difference; a layer's results that are not finite say nothing."""
        return not self.largest > self.tolerance * self.scale

    def __str__(self) -> str:
        return f"{self.largest:.2g} in values of up to {self.scale:.2g}"


def tolerance(*dtypes: Any) -> float:
    """The largest relative difference that is still rounding, in results of these dtypes.

    It is generous: accelerators multiply float32 with fewer digits, and a wrong fold is off by far more.
    """
    inexact = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return max([0.01, *(32 * float(jnp.finfo(dtype).eps) for dtype in inexact)])


@reused
def measuring(model: Model, run: Run, folds: tuple[Fold, ...]) -> Measure:
    """Returns a function that runs ``model``, and gives for each norm that must not fold the reason.

    The layer itself is called with its new arrays, so it does not matter what its class overrides.
    """
    reasons: dict[str, str] = {}
    one_at_a_time = threading.Lock()  # because all calls note their reasons there

    def note(norm: str, what: str, limit: float, largest: Any, scale: Any) -> None:
        found = Difference(float(largest), float(scale), limit)
        if not found.is_rounding:
            reasons[norm] = f"{what}: they differ by {found}"

    def compare(fold: Fold, what: str, got: jax.Array, want: jax.Array, scaled: jax.Array) -> None:
        # What comes in was rounded, so the scale is also that of factor · x, of which little may be left.
        limit = tolerance(jnp.result_type(got))
        got, want = upcast(jnp.asarray(got)), upcast(jnp.asarray(want))
        sizes = jnp.abs(got - want), jnp.maximum(jnp.abs(want), jnp.abs(scaled))
        sizes = [size.astype(real_dtype(jnp.result_type(got, want))) for size in sizes]
        # One reduction of both, which stores neither. XLA:CPU (of jax 0.10) fails to compile several of the
        # model's output.
        zero = jnp.zeros((), sizes[0].dtype)
        largest = jax.lax.reduce(sizes, [zero, zero], _larger, range(want.ndim))
        # A callback, because the layer may be in a function that the model itself compiles.
        noting = partial(note, fold.pair.norm, what, limit)
        jax.debug.callback(noting, *largest)

    def watch(call: LayerCall, arrays: Sequence[PairArrays]) -> Any:
        y = call.proceed(*call.args, **call.kwargs)
        for fold, of_pair in zip(folds, arrays, strict=True):
            norm, layer, before = fold.pair
            affine = partial(_affine, fold.axes, of_pair)
            if call.path == norm:
                moved, scaled = affine(call.x)
                want = what_is_left(call.layer, fold.dtypes, moved, call.kwargs.get("residual"))
                what = f"{norm} ({call.kind}) does not return the affine function of its arrays"
                compare(fold, what, y, want, scaled)
            if call.path == layer:
                changed, (x, *others) = _changed(call.layer, of_pair.layer), call.args
                if before:
                    want, scaled = affine(y)
                else:  # with any input of the norm
                    x = jax.random.normal(jax.random.key(0), jnp.shape(x), jnp.result_type(x))
                    itself = _changed(call.layer, {})
                    want = itself(affine(x)[0].astype(x.dtype), *others, **call.kwargs)
                    scaled = want
                got = changed(x, *others, **call.kwargs)
                what = (
                    f"{layer} ({call.kind}) with folded arrays does not return what the two return"
                )
                compare(fold, what, got, want, scaled)
        return y

    @jax.jit
    def compiled(state: Tree, batch: Batch, keys: Any, arrays: Sequence[PairArrays]) -> Any:
        return model.run(state, {}, run, batch, partial(watch, arrays=arrays), keys)[0]

    def measure(
        state: Tree, batch: Batch, keys: Any, arrays: Sequence[PairArrays]
    ) -> tuple[Any, dict[str, str]]:
        with one_at_a_time:
            reasons.clear()
            y = compiled(state, batch, keys, arrays)
            jax.effects_barrier()
            return y, dict(reasons)

    return measure


def _larger(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> list[jax.Array]:
    return [jnp.maximum(*pair) for pair in zip(a, b, strict=True)]


def difference(flow: Flow, a: Tree, b: Tree) -> Difference:
    """Compares the floating and complex outputs of two models, the first of which was followed.

    If all differences are rounding, it is the largest one; otherwise, that of the first output for which it
    is not. Values that are not finite must be the same, but for one in a hundred: rounding can decide
    whether a value is masked.
    """
    used = [seen.dtype for seen in flow.seen.values()]
    found = [Difference(0.0, 0.0, 0.0)]
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        dtype = getattr(x, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            continue  # a class or a random key
        wide = [np.asarray(leaf, np.complex128) for leaf in (x, y)]
        finite = np.isfinite(wide[0]) & np.isfinite(wide[1])
        largest = np.abs(np.subtract(*wide, where=finite, out=np.zeros_like(wide[0])))
        same = finite | np.equal(*wide) | (np.isnan(wide[0]) & np.isnan(wide[1]))
        if (~same).sum() > 0.01 * same.size:
            largest[~same] = np.inf
        scale = np.abs(wide[0][finite]).max(initial=0.0)
        of_leaf = float(largest.max(initial=0.0)), float(scale), tolerance(dtype, *used)
        found.append(Difference(*of_leaf))
    wrong = (each for each in found if not each.is_rounding)
    return next(wrong, max(found, key=lambda each: each.largest))


def _affine(axes: tuple[int, ...], arrays: PairArrays, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What a batch norm makes of ``x``, or of the output of the layer before it.

    Also returns the first of its two terms, factor · x.
    """
    x = upcast(jnp.asarray(x))
    shape = [x.shape[axis] if axis in axes else 1 for axis in range(-x.ndim, 0)]
    factor, offset = (jnp.reshape(a, shape) for a in (arrays.factor, arrays.offset))
    return factor * x + offset, factor * x


def _changed(layer: Layer, arrays: Arrays) -> Callable[..., Any]:
    """The layer with new arrays."""
    if not isinstance(layer, nn.Module):
        return set_arrays(nnx.clone(layer), arrays)
    variables = dict(layer.variables)
    params = dict(variables["params"])
    for name, array in arrays.items():
        params[name] = array_like(params.get(name), array, params.get("kernel"))
    biased = {"use_bias": True} if "bias" in arrays else {}
    return partial(rebuilt(layer, **biased).apply, {**variables, "params": params})
