"""Spectral norm of a convolution as an operator (Gouk et al., 2018, https://arxiv.org/abs/1804.04368)."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..core._arguments import is_integer
from ..core._placement import replicated
from ..core._precision import check_real, result_dtype, upcast
from ..core._public import public


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
    """Spectral norm of a convolution: divided by how much it can lengthen an image, which is then 1.

        u = conv(v)        v = convᵀ(u)        each at length 1        (``n_steps`` times)
        u = conv(v) once more   σ = ⟨u, conv(v)⟩        w = kernel / σ

    `spectral_norm` divides by the singular value of the kernel as a matrix, which is another number: the
    convolution can lengthen an image by more, up to the root of the kernel's positions. v and u are constants
    for the derivative.

    Args:
        kernel: (height, width, channels in, channels out) of any floating dtype; the arithmetic is in float32
            or wider.
        image: v (1, height, width, channels in), from the last step or random: the state.
        strides: of the convolution.
        padding: of the convolution, as `jax.lax.conv_general_dilated` takes it.
        n_steps: steps of power iteration, 1 or more.
        dtype: of the result; None is that of ``kernel``.

    Returns:
        Weights of the shape of ``kernel``, and the next ``image``.

    Raises:
        ValueError: the shapes are not those of a convolution, or ``n_steps`` is less than 1; the message says
            what must hold and what to do.

    Example:
        >>> import jax, jax.numpy as jnp, jaxnorm as jn
        >>> kernel = jnp.ones((3, 3, 1, 1))  # lengthens a constant image by 9, but for its borders
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
            f"image must be (1, height, width, channels in) for a kernel (height, width, channels in, "
            f"channels out); got an image of shape {image.shape} for a kernel of shape {kernel.shape}. Start "
            f"from a random image of the size that the layer meets."
        )
    if not is_integer(n_steps) or n_steps < 1:
        raise ValueError(
            f"n_steps must be an integer of 1 or more; got {n_steps!r}. 1 is enough in training, where each "
            f"step continues from the last."
        )
    if isinstance(padding, str) and padding not in ("SAME", "SAME_LOWER", "VALID"):
        raise ValueError(
            f"padding must be SAME, SAME_LOWER, VALID or a pair for each axis; got {padding!r}. Take that "
            f"of the layer."
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
    """Left and right singular images of a linear function, by power iteration from ``v``."""
    transposed = jax.linear_transpose(conv, v)

    def unit(a: jax.Array) -> jax.Array:
        length = jnp.sqrt((a**2).sum())
        return a / jnp.where(length > 0, length, 1)

    def step(_: int, v: jax.Array) -> jax.Array:
        return unit(transposed(unit(conv(v)))[0])

    v = lax.fori_loop(0, n_steps, step, unit(v))
    return unit(conv(v)), v
