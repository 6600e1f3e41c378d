"""Selects norms by name."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ..norms._registry import NormName, choose


class NoNorm(nnx.Module):
    """No norm: returns its input unchanged."""

    def __init__(self, num_features: Any = None, *, rngs: nnx.Rngs | None = None) -> None:
        pass

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> jax.Array:
        """Returns ``x``."""
        return x


def get_norm(name: NormName | str, **options: Any) -> Callable[..., nnx.Module]:
    """Returns the constructor of a norm, which a model can take as an argument.

    Construct a norm of activations as ``norm(num_features, rngs=rngs)``. Its call takes an optional
    ``use_running_average`` and ``mask``, and ignores those it does not need.

    A norm of weights (``magnitude_preserving``, ``scaled_weight_standardization``, ``spectral``, ``weight``
    or ``weight_standardization``) wraps a layer or a model. Construct it as ``norm(layer, rngs=rngs)``.

    Args:
        name: one of the names in `NormName`.
        options: arguments of the class to fill in, so that the model need not know them.

    Returns:
        The class with ``options`` filled in; the caller can still pass other arguments.

    Raises:
        ValueError: If there is no norm called ``name``.
        TypeError: If the norm does not have one of the ``options``.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> class Model(nnx.Module):
        ...     def __init__(self, norm, rngs):
        ...         self.conv = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        ...         self.norm = norm(16, rngs=rngs)
        ...     def __call__(self, x):
        ...         return self.norm(self.conv(x))
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
        >>> for norm in (jnx.get_norm("batch", momentum=0.9), jnx.get_norm("group", num_groups=8)):
        ...     model = Model(norm, nnx.Rngs(0))
        ...     print(model(x).shape, *nnx.state(model)["norm"])
        (2, 8, 8, 16) bias mean scale var
        (2, 8, 8, 16) bias scale
    """
    from .. import nnx as layers  # imports this file

    return choose({**vars(layers), "NoNorm": NoNorm}, name, **options)
