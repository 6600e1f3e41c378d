"""Mean and whitening matrix of a batch; the inverse root uses only matrix multiplications."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ...core._all_reduce import AxisName
from ...core._moments import reduce_moments
from ...core._residuals import saveable
from .._shared._arithmetic import exact_product


def whitening_of(
    rows: jax.Array,
    counted: jax.Array | None,
    steps: int,
    epsilon: float,
    axis_name: AxisName | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the count, mean and whitening matrix of the unmasked rows (..., C)."""
    m = reduce_moments(rows, tuple(range(rows.ndim - 1)), counted, axis_name, None)
    centered = rows - m.mean
    centered = centered if counted is None else jnp.where(counted, centered, 0)
    over, sharding = tuple(range(rows.ndim - 1)), jax.typeof(rows).sharding
    products = lax.dot_general(
        centered,
        centered,
        ((over, over), ((), ())),
        precision=lax.Precision.HIGHEST,
        out_sharding=NamedSharding(sharding.mesh, PartitionSpec(None, None))
        if any(sharding.spec)
        else None,
    )
    if axis_name is not None:
        products = lax.psum(products, axis_name)
    products = saveable(products)
    count = m.count.reshape(-1)[0]
    identity = jnp.eye(rows.shape[-1], dtype=rows.dtype)
    covariance = products / jnp.maximum(count, 1) + epsilon * identity
    return count, m.mean.reshape(-1), inverse_root(covariance, steps)


def whitening_of_groups(
    rows: jax.Array,
    counted: jax.Array | None,
    like: jax.Array,
    steps: int,
    epsilon: float,
    axis_name: AxisName | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns count, mean and a matrix, or a matrix of each group of channels, shaped as ``like``."""
    if like.ndim == 2:
        return whitening_of(rows, counted, steps, epsilon, axis_name)
    groups = jnp.moveaxis(_in_groups(rows, like), -2, 0)
    count, mean, matrix = jax.vmap(
        lambda group: whitening_of(group, counted, steps, epsilon, axis_name)
    )(groups)
    return count.reshape(-1)[0], mean.reshape(-1), matrix


def whitened_rows(centered: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns the product of each row, or of each group of channels in it, and the matrix."""
    if matrix.ndim == 2:
        return jnp.matmul(centered, matrix, precision=lax.Precision.HIGHEST)
    groups = _in_groups(centered, matrix)
    product = jnp.einsum("...gi,gij->...gj", groups, matrix, precision=lax.Precision.HIGHEST)
    return product.reshape(centered.shape)


def _in_groups(rows: jax.Array, matrix: jax.Array) -> jax.Array:
    """Splits the last axis into groups, one for each matrix."""
    return rows.reshape(*rows.shape[:-1], *matrix.shape[:2])


def mask_of_rows(mask: jax.Array | None, channel: int) -> jax.Array | None:
    """Returns the mask with the channel axis, which must have size 1, moved last."""
    if mask is None:
        return None
    if mask.shape[channel] != 1:
        raise ValueError(
            f"mask must be the same for all channels in whitening; got mask of shape {mask.shape} with "
            f"channels along axis {channel}. Give it size 1 there."
        )
    return jnp.moveaxis(mask, channel, -1)


def inverse_root(covariance: jax.Array, steps: int) -> jax.Array:
    """Approximates Σ^(-1/2) of a positive definite Σ by ``steps`` Newton iterations.

        P ← (3 P - P³ Σ) / 2 from the identity, for Σ of trace 1

    Eigenvalues far below the largest need the most steps. Y = P Σ is iterated as a separate matrix: if it
    were recomputed from P, rounding errors would grow in each step, and the iteration would diverge after
    it had converged (Higham, "Functions of Matrices", 2008, section 6.4).
    """
    trace = jnp.trace(covariance)
    eye = jnp.eye(len(covariance), dtype=covariance.dtype)

    p, y = eye, covariance / trace
    for _ in range(steps):
        change = (3 * eye - exact_product(p, y)) / 2
        p, y = exact_product(change, p), exact_product(y, change)
    return p / jnp.sqrt(trace)
