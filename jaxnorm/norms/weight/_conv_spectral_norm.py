"""Spectral norm of a convolution operator (Gouk et al., 2018, https://arxiv.org/abs/1804.04368)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ...core._placement import replicated
from ...core._precision import check_real, result_dtype, upcast
from ...core.calling._arguments import is_integer
from ...core.calling._public import public


@public
def conv_spectral_norm(
    kernel: jax.Array,
    image: jax.Array,
    *,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    n_steps: int = 1,
    dtype: DTypeLike | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Divides a convolution kernel by the operator norm of the convolution, so that the norm becomes 1.

        u = conv(v)        v = convᵀ(u)        each scaled to length 1        (``n_steps`` times)
        u = conv(v) again       σ = ⟨u, conv(v)⟩        w = kernel / σ

    `spectral_norm` instead divides by the largest singular value of the kernel reshaped to a matrix. The
    convolution can lengthen an image by more than that, by up to a factor of the square root of the number of
    kernel positions. v and u are treated as constants in differentiation.

    Args:
        kernel: weights of shape (height, width, channels in, channels out) and any floating dtype; computed
            in float32 or wider.
        image: v, of shape (1, height, width, channels in): the state, from the previous step or random.
        strides: strides of the convolution.
        padding: padding of the convolution, as in `jax.lax.conv_general_dilated`.
        n_steps: number of power iteration steps, at least 1.
        dtype: dtype of the result; None means the dtype of ``kernel``.

    Returns:
        Weights with the shape of ``kernel``, and the updated ``image``.

    Raises:
        ValueError: If the shapes do not fit a convolution, if ``n_steps`` is less than 1, or if another
            argument is invalid.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> kernel = jnp.ones((3, 3, 1, 1))  # lengthens a constant image by 9, except at its borders
        >>> image = jax.random.normal(jax.random.key(0), (1, 32, 32, 1))
        >>> w, _ = jn.conv_spectral_norm(kernel, image, n_steps=200)
        >>> print((kernel / w).mean().round(2))
        8.95
    """
    kernel, image = jnp.asarray(kernel), jnp.asarray(image)
    check_real("conv_spectral_norm", "spectral_norm", kernel, image)
    if (
        kernel.ndim != 4
        or image.ndim != 4
        or (image.shape[0], image.shape[3]) != (1, kernel.shape[2])
    ):
        raise ValueError(
            f"image must have shape (1, height, width, channels in) for a kernel of shape (height, width, "
            f"channels in, channels out); got image of shape {image.shape} for kernel of shape "
            f"{kernel.shape}. Start from a random image of the layer's input size."
        )
    if not is_integer(n_steps) or n_steps < 1:
        raise ValueError(
            f"n_steps must be a positive integer; got {n_steps!r}. 1 is enough in training, where each step "
            f"continues from the previous one."
        )
    if isinstance(padding, str) and padding not in ("SAME", "SAME_LOWER", "VALID"):
        raise ValueError(
            f"padding must be SAME, SAME_LOWER, VALID or a pair for each axis; got {padding!r}. Use the "
            f"padding of the layer."
        )
    wide = upcast(kernel)
    conv = partial(
        lax.conv_general_dilated,
        window_strides=tuple(strides),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )
    matrix = replicated(wide)
    fixed = lax.stop_gradient(matrix)
    u, v = _singular_images(
        lambda v: conv(v, fixed), lax.stop_gradient(image).astype(wide.dtype), n_steps
    )
    sigma = (u * conv(v, matrix)).sum()
    w = wide / jnp.where(sigma > 0, sigma, 1)
    return w.astype(result_dtype(dtype, kernel)), v.astype(result_dtype(None, image))


def _singular_images(
    conv: Callable[[jax.Array], jax.Array], v: jax.Array, n_steps: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the left and right singular images of a linear function, by power iteration from ``v``."""
    transposed = jax.linear_transpose(conv, v)

    def unit(a: jax.Array) -> jax.Array:
        length = jnp.sqrt((a**2).sum())
        return a / jnp.where(length > 0, length, 1)

    def step(_: int, v: jax.Array) -> jax.Array:
        return unit(transposed(unit(conv(v)))[0])

    v = lax.fori_loop(0, n_steps, step, unit(v))
    return unit(conv(v)), v
