"""Every norm except batch norm: its function, the elements that share a statistic, and its parameters."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxnorm as jn
from tests.cases import draw
from tests.oracle import norm_of_cells, wide


class Norm(NamedTuple):
    """A norm at some shape, and its cells: the sets of elements of x that share a statistic."""

    ours: Callable[..., jax.Array]
    shape: tuple[int, ...]
    reduced: tuple[int, ...] = (-1,)
    features: tuple[int, ...] = (-1,)
    groups: int | None = None  # groups of channels; channels are then in ``reduced``
    statistic: str = "variance"
    epsilon: float = 1e-6  # the default
    parameters: int = 2
    takes_mask: bool = True

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of scale and bias."""
        axes = sorted(i % len(self.shape) for i in self.features)
        return tuple(self.shape[i] for i in axes)

    def cells(self, shape: tuple[int, ...]) -> np.ndarray:
        """Every element's cell number, from its index along the axes that are not reduced and its group."""
        reduced = {i % len(shape) for i in self.reduced}
        places = list(np.indices(shape))
        for i in reduced:
            places[i] *= 0
        if self.groups is not None:
            (channel,) = (i % len(shape) for i in self.features)
            size = shape[channel] // self.groups
            places[channel] = np.indices(shape)[channel] // size
        return np.asarray(np.ravel_multi_index(places, shape))

    def oracle(
        self, x: Any, *parameters: Any, mask: Any = None, epsilon: float | None = None
    ) -> np.ndarray:
        """The norm in float64."""
        ndim = np.ndim(x)
        y = norm_of_cells(
            x,
            self.cells(np.shape(x)),
            epsilon=self.epsilon if epsilon is None else epsilon,
            mask=mask,
            statistic=self.statistic,
        )
        kept = {i % ndim for i in self.features}
        against = [n if i in kept else 1 for i, n in enumerate(np.shape(x))]
        for parameter, apply in zip(parameters, (np.multiply, np.add), strict=False):
            y = apply(y, wide(parameter).reshape(against))
        return y

    def primals(self, seed: int = 0, mean: float = 1.0, dtype: str = "float32") -> tuple[Any, ...]:
        """A tuple of x, scale and, for norms that have one, bias."""
        rng = np.random.default_rng([seed, zlib.crc32(repr(self.shape).encode())])
        x = draw(rng, self.shape, dtype, mean, 2.0)
        return x, *(draw(rng, self.feature_shape, dtype) for _ in range(self.parameters))

    def mask(self) -> np.ndarray | None:
        """A mask that keeps some elements in most cells."""
        return np.random.default_rng(5).random(self.shape) < 0.7 if self.takes_mask else None


def of(norm: Callable[..., jax.Array], **options: Any) -> Callable[..., jax.Array]:
    """``norm`` with default options that keyword arguments can override."""
    return lambda *args, **more: norm(*args, **(options | more))


def _instance(shape: tuple[int, ...], features: tuple[int, ...] = (-1,)) -> Norm:
    kept = {0, *(i % len(shape) for i in features)}
    reduced = tuple(i for i in range(len(shape)) if i not in kept)
    return Norm(of(jn.instance_norm, feature_axes=features), shape, reduced, features)


def _group(shape: tuple[int, ...], groups: int, channel: int = -1, **options: Any) -> Norm:
    all_but_batch = sorted({*range(1, len(shape)), channel % len(shape)})
    reduced = tuple(options.get("reduction_axes", all_but_batch))
    options |= {"feature_axes": channel}
    if "group_size" not in options:
        options |= {"num_groups": groups}
    return Norm(of(jn.group_norm, **options), shape, reduced, (channel,), groups)


def _layer(shape: tuple[int, ...], reduced: tuple[int, ...], features: tuple[int, ...]) -> Norm:
    ours = of(jn.layer_norm, reduction_axes=reduced, feature_axes=features)
    return Norm(ours, shape, reduced, features)


def _rms(shape: tuple[int, ...], reduced: tuple[int, ...], features: tuple[int, ...]) -> Norm:
    ours = of(jn.rms_norm, reduction_axes=reduced, feature_axes=features)
    return Norm(ours, shape, reduced, features, statistic="mean square", parameters=1)


def _l2(shape: tuple[int, ...], reduced: tuple[int, ...], features: tuple[int, ...]) -> Norm:
    ours = of(jn.l2_normalize, reduction_axes=reduced, feature_axes=features)
    return Norm(ours, shape, reduced, features, None, "square length", 1e-12, 1)


def _of_kernel(
    norm: Callable[..., jax.Array],
    shape: tuple[int, ...],
    features: tuple[int, ...],
    statistic: str,
    epsilon: float,
) -> Norm:
    kept = {i % len(shape) for i in features}
    reduced = tuple(i for i in range(len(shape)) if i not in kept)
    ours = of(norm, feature_axes=features)
    return Norm(ours, shape, reduced, features, None, statistic, epsilon, 1, takes_mask=False)


def _weight(shape: tuple[int, ...], features: tuple[int, ...]) -> Norm:
    return _of_kernel(jn.weight_norm, shape, features, "square length", 1e-12)


def _standard(shape: tuple[int, ...], features: tuple[int, ...]) -> Norm:
    return _of_kernel(jn.weight_standardization, shape, features, "variance", 1e-10)


# Realistic sizes, and more than 32k rows, for which compilers choose other reductions.
NORMS = {
    "layer": Norm(jn.layer_norm, (6, 37)),
    "layer, long rows": Norm(jn.layer_norm, (3, 4099)),
    "layer, many rows": Norm(jn.layer_norm, (40009, 24)),
    "layer, all but the batch": _layer((3, 5, 7, 4), (1, 2, 3), (-1,)),
    "layer, other axes": _layer((3, 5, 7), (0, 2), (1, 2)),
    "rms": Norm(jn.rms_norm, (2, 5, 33), statistic="mean square", parameters=1),
    "instance": _instance((3, 13, 11, 4)),
    "instance, channels first": _instance((3, 4, 13, 11), (1,)),
    "group": _group((2, 7, 5, 12), 3),
    "group, no positions": _group((5, 12), 3, num_groups=None, group_size=4),
    "group, channels first": _group((2, 6, 5, 7), 2, 1),
    "l2": Norm(jn.l2_normalize, (2, 5, 33), (-1,), (-1,), None, "square length", 1e-12, 1),
    "weight": _weight((3, 3, 7, 6), (-1,)),
    "weight, outputs first": _weight((6, 7, 3, 3), (0,)),
    "standardization": _standard((3, 3, 7, 6), (-1,)),
    "standardization, outputs first": _standard((6, 7, 3, 3), (0,)),
}
# Every choice of axes, as small as possible: each gradient entry takes two values of the oracle.
AXES = {
    "layer -1": _layer((4, 7), (-1,), (-1,)),
    "layer first": _layer((5, 4), (0,), (1,)),
    "layer all but the batch": _layer((2, 3, 2, 3), (1, 2, 3), (-1,)),
    "layer all": _layer((3, 4), (0, 1), (0, 1)),
    "layer one axis, parameters of another": _layer((2, 4, 3), (1,), (-1, 0)),
    "layer apart": _layer((2, 3, 4), (0, -1), (1, 2)),
    "rms -1": _rms((4, 7), (-1,), (-1,)),
    "rms first": _rms((2, 4, 3), (1,), (1,)),
    "rms apart": _rms((2, 3, 4), (0, 2), (-2, -1)),
    "instance last": _instance((2, 3, 2, 3)),
    "instance first": _instance((2, 3, 4, 2), (1,)),
    "instance two": _instance((2, 2, 5, 2), (1, -1)),
    "instance no positions": _instance((4, 3)),
    "group last": _group((2, 2, 2, 6), 3),
    "group first": _group((2, 6, 3), 2, 1),
    "group one": _group((3, 2, 4), 1),
    "group each": _group((2, 5, 4), 4),
    "group of 3": _group((3, 9), 3, num_groups=None, group_size=3),
    "group over rows": _group((2, 3, 3, 4), 2, reduction_axes=(2, 3)),
    "group over the batch": _group((3, 2, 4), 2, reduction_axes=(0, 1, 2)),
    "l2 -1": _l2((4, 7), (-1,), (-1,)),
    "l2 matrix": _l2((2, 3, 4), (1, 2), (0,)),
    "l2 apart": _l2((2, 3, 4), (0, 2), (1, 2)),
    "weight last": _weight((2, 3, 4), (-1,)),
    "weight first": _weight((4, 3, 2), (0,)),
    "weight two": _weight((2, 3, 4), (0, 1)),
    "weight one length": _weight((3, 4), ()),
    "standardization last": _standard((2, 3, 4), (-1,)),
    "standardization first": _standard((4, 3, 2), (0,)),
    "standardization two": _standard((2, 3, 4), (0, 1)),
    "standardization all": _standard((3, 4), ()),
}
