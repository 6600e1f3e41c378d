"""Selects norms by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from ..norms._registry import NormName, choose


class NoNorm(nn.Module):
    """No norm: returns its input unchanged."""

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        use_running_average: bool | None = None,
    ) -> jax.Array:
        """Returns ``x``."""
        return x


def get_norm(name: NormName | str, **options: Any) -> Callable[..., nn.Module]:
    """Returns the constructor of a norm, which a model can take as an argument.

    Call a norm of activations as ``norm()(x, use_running_average=not train, mask=mask)``; it ignores the
    arguments it does not need.

    A norm of weights (``magnitude_preserving``, ``scaled_weight_standardization``, ``spectral``, ``weight``
    or ``weight_standardization``) wraps a layer or a model. Call it as
    ``norm(nn.Dense(10))(x, use_running_average=not train)``.

    Args:
        name: one of the names in `NormName`.
        options: fields of the class to fill in, so that the model need not know them.

    Returns:
        The class with ``options`` filled in; the caller can still pass other fields.

    Raises:
        ValueError: If there is no norm called ``name``.
        TypeError: If the norm does not have one of the ``options``.

    Example:
        >>> import jax, flax.linen as nn
        >>> from collections.abc import Callable
        >>> from jaxnorm import linen as jnl
        >>> class Model(nn.Module):
        ...     norm: Callable[..., nn.Module]
        ...     @nn.compact
        ...     def __call__(self, x, train):
        ...         x = nn.Conv(16, (3, 3))(x)
        ...         return self.norm()(x, use_running_average=not train)
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
        >>> for norm in (jnl.get_norm("batch", momentum=0.9), jnl.get_norm("group", num_groups=8)):
        ...     variables = Model(norm).init(jax.random.key(1), x, train=True)
        ...     print(*variables, *variables["params"])
        params batch_stats Conv_0 BatchNorm_0
        params Conv_0 GroupNorm_0
    """
    from .. import linen as layers  # imports this file

    return choose({**vars(layers), "NoNorm": NoNorm}, name, **options)
