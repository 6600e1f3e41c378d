"""Checks that a function with norms gives the same results on many devices as on one."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..core.calling._arguments import checked
from ._stats._progress import progress_bar

Tree: TypeAlias = Any
ModelFunction: TypeAlias = Callable[[Tree, Tree, str | None], tuple[Tree, Tree]]

_AXIS = "batch"


class Parity(NamedTuple):
    """The relative difference between a transform and one device: largest difference / largest value.

    A NaN in only one of the two counts as infinity. ``problem`` is the error that was raised, if any.

    Example:
        >>> from jaxnorm import tools
        >>> tools.Parity("pmap", outputs=0.0, state=0.3, gradients=0.0).worst
        0.3
    """

    transform: str
    outputs: float = np.inf
    state: float = np.inf
    gradients: float = np.inf
    problem: str = ""

    @property
    def worst(self) -> float:
        """The largest of the three differences."""
        return max(self.outputs, self.state, self.gradients)


@checked
def assert_parity(
    f: ModelFunction,
    params: Tree,
    batch: Tree,
    *,
    devices: Sequence[Any] | None = None,
    tolerance: float = 1e-4,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Parity]:
    """Checks that ``f`` has the same outputs, state and gradients under every transform as on one device.

    The transforms are jit over a mesh, shard_map with and without check_vma, pmap and vmap; the batch is
    split into equal parts. Gradients are those of a random linear function of outputs and state.

    Args:
        f: ``f(params, batch, axis_name)`` returns outputs, whose leaves have examples along the first axis,
            and state, which depends on all examples (updated running statistics, a loss). ``axis_name`` is
            the mapped axis to pass to the norms, or None on one device and under jit over a mesh.
        params: a tree of arrays that are replicated on every device: parameters, running statistics.
        batch: a tree of arrays that are split over the devices along axis 0: examples, masks.
        devices: the devices to use; None means all. To get several on a CPU, call
            ``jax.config.update("jax_num_cpu_devices", 8)`` first.
        tolerance: the largest difference allowed, relative to the largest value of the same array (or to a
            hundredth of the largest value of all outputs, all state or all gradients, if that is more).
        seed: seed of the random linear function.
        progress: whether to show a progress bar, as in `recalibrate`.

    Returns:
        A `Parity` for each transform.

    Raises:
        AssertionError: If a transform differs or raises; the message is a table of all transforms.
        ValueError: If the batch cannot be split equally over the devices, or there is only one device.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> from jaxnorm import tools
        >>> def f(stats, batch, axis_name):
        ...     return jn.batch_norm(batch["x"], stats, mask=batch["mask"], axis_name=axis_name)
        >>> x = jax.random.normal(jax.random.key(0), (16, 3))
        >>> mask = jnp.arange(16)[:, None] < 11  # the last devices have few unmasked rows, or none
        >>> if jax.device_count() > 1:
        ...     rows = tools.assert_parity(f, jn.init_running_stats(3), {"x": x, "mask": mask})
    """
    devices = jax.devices() if devices is None else devices
    sizes = sorted({np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)})
    n = len(devices)
    if n < 2 or len(sizes) != 1 or len(sizes[0]) != 1 or sizes[0][0] % n:
        raise ValueError(
            f"batch must split equally over two or more devices: all leaves need the same first axis, a "
            f"multiple of the number of devices; got first axes {sizes} and number of devices {n}. Pad and "
            f"mask the batch; for more devices on a CPU, set jax_num_cpu_devices in jax.config first."
        )
    params, batch = jax.device_get((params, batch))  # so that each transform can place them
    one_device = _Map("one device", lambda p, b: _with_replicas(f(p, b, None)))
    maps, rows = _maps(f, devices), []
    with progress_bar("Comparing", 1 + len(maps), progress) as advance:
        expected = _measured(one_device, params, batch, seed)
        advance()
        for mapped in maps:
            try:
                got = _measured(mapped, params, batch, seed)
                outputs, state, gradients = map(_difference, got, expected)
                rows.append(Parity(mapped.name, outputs, state, gradients))
            except Exception as error:  # errors of the user's function are part of the result
                rows.append(Parity(mapped.name, problem=f"{type(error).__name__}: {error}"))
            advance()
    if not all(row.worst <= tolerance for row in rows):
        raise AssertionError(
            f"results on {len(devices)} devices differ from those on one (tolerance {tolerance:g})\n"
            f"{_table(rows)}"
        )
    return rows


class _Map(NamedTuple):
    """A transform of the function. The state that it returns has replicas along the first axis."""

    name: str
    call: Callable[[Tree, Tree], tuple[Tree, Tree]]
    place: Callable[[Tree, Tree], tuple[Tree, Tree]] = lambda params, batch: (params, batch)


def _maps(f: ModelFunction, devices: Sequence[Any]) -> list[_Map]:
    """JAX's ways to run ``f`` on several devices, or to simulate that."""
    n = len(devices)
    mesh = Mesh(np.asarray(devices), (_AXIS,), axis_types=(AxisType.Auto,))
    whole, parts = PartitionSpec(), PartitionSpec(_AXIS)

    def part(params: Tree, batch: Tree) -> tuple[Tree, Tree]:
        return f(params, batch, _AXIS)

    def place(params: Tree, batch: Tree) -> tuple[Tree, Tree]:
        return tuple(
            jax.device_put(tree, NamedSharding(mesh, spec))
            for tree, spec in ((params, whole), (batch, parts))
        )

    def by_shard_map(check_vma: bool) -> Callable[[Tree, Tree], tuple[Tree, Tree]]:
        return jax.shard_map(
            lambda params, batch: _with_replicas(part(params, batch)),
            mesh=mesh,
            in_specs=(whole, parts),
            out_specs=parts,
            check_vma=check_vma,
        )

    def stacked(mapped: Callable[..., tuple[Tree, Tree]]) -> Callable[..., tuple[Tree, Tree]]:
        def call(params: Tree, batch: Tree) -> tuple[Tree, Tree]:
            split = jax.tree.map(lambda a: a.reshape(n, -1, *a.shape[1:]), batch)
            outputs, state = mapped(params, split)
            return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs), state

        return call

    return [
        _Map("jit over a mesh", lambda p, b: _with_replicas(f(p, b, None)), place),
        _Map("shard_map", by_shard_map(True), place),
        _Map("shard_map, check_vma=False", by_shard_map(False), place),
        _Map("pmap", stacked(jax.pmap(part, _AXIS, in_axes=(None, 0), devices=devices))),
        _Map("vmap", stacked(jax.vmap(part, in_axes=(None, 0), axis_name=_AXIS))),
    ]


def _with_replicas(outcome: tuple[Tree, Tree]) -> tuple[Tree, Tree]:
    outputs, state = outcome
    return outputs, jax.tree.map(lambda a: jnp.asarray(a)[None], state)


def _measured(mapped: _Map, params: Tree, batch: Tree, seed: int) -> tuple[Tree, Tree, Tree]:
    """Returns outputs, the state of all replicas, and gradients."""
    arguments, rebuild = _inexact_leaves(mapped.place(params, batch))

    def loss(arguments: list[jax.Array]) -> tuple[jax.Array, tuple[Tree, Tree]]:
        outputs, state = mapped.call(*rebuild(arguments))
        # Each replica contributes its share of the state, so that all replicas contribute it once.
        shared = jax.tree.map(
            lambda a: a.mean(0) if jnp.issubdtype(a.dtype, jnp.inexact) else a[0], state
        )
        values, _ = _inexact_leaves((outputs, shared))
        key = jax.random.key(seed)
        total = jnp.zeros(())
        for i, value in enumerate(values):
            weights = jax.random.normal(jax.random.fold_in(key, i), value.shape)
            real = value.real + value.imag if jnp.iscomplexobj(value) else value
            total += (weights * real.astype(weights.dtype)).sum()
        return total, (outputs, state)

    gradients, (outputs, state) = jax.jit(jax.grad(loss, has_aux=True))(arguments)
    return jax.device_get((outputs, state, gradients))


def _inexact_leaves(tree: Tree) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Tree]]:
    """The leaves to differentiate, and a function that puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, a in enumerate(leaves) if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]

    def rebuild(replaced: list[jax.Array]) -> Tree:
        by_place = dict(zip(places, replaced, strict=True))
        return jax.tree.unflatten(structure, [by_place.get(i, a) for i, a in enumerate(leaves)])

    return [leaves[i] for i in places], rebuild


def _difference(got: Tree, expected: Tree) -> float:
    """The largest relative difference of any array: its largest difference divided by its largest value.

    An array that is almost zero, such as the gradient of a bias before a norm, holds only rounding errors:
    its largest value is taken to be at least a hundredth of the largest of all arrays.
    """
    pairs = [
        np.broadcast_arrays(_wide(a), _wide(b))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True)
    ]
    sizes = [np.abs(b[np.isfinite(b)]).max(initial=1e-30) for _, b in pairs]
    worst = 0.0
    for (a, b), size in zip(pairs, sizes, strict=True):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            apart = np.abs(np.where(same, 0, a - b)).max(initial=0.0)
        worst = max(worst, float(np.nan_to_num(apart, nan=np.inf) / max(size, max(sizes) / 100)))
    return worst


def _wide(a: Any) -> np.ndarray:
    return np.asarray(a, np.complex128 if np.iscomplexobj(a) else np.float64)


def _table(rows: list[Parity]) -> str:
    lines = [f"{'':28}{'outputs':>10}{'state':>10}{'gradients':>11}"]
    for row in rows:
        numbers = f"{row.outputs:10.1e}{row.state:10.1e}{row.gradients:11.1e}"
        lines.append(f"{row.transform:28}{row.problem or numbers}")
    return "\n".join(lines)
