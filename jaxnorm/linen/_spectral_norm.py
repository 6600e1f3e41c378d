"""`SpectralNorm` as a Linen module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core._explained import explaining_fields
from ..norms._choice import is_updating
from ..norms._spectral_norm import (
    SpectralState,
    has_spectral_norm,
    init_spectral_norm,
    spectral_norm,
)
from ._variables import Checked
from ._wrapped import call_with


class SpectralNorm(Checked):
    """Spectral norm of the layer it wraps: `flax.linen.SpectralNorm`, field for field.

    Computes `jaxnorm.spectral_norm` of each of the layer's parameters of rank 2 or more, which stay as
    they are. The state of each is in ``batch_stats``, named by the path of its parameter: ``u`` and
    ``sigma``.

    Attributes:
        layer_instance: the layer to wrap.
        n_steps: steps of power iteration in a call. 0 leaves the layer as it is, None is the exact singular
            value.
        epsilon: added to the square of the length that directions are divided by.
        dtype: of the normalized weights; None is what they and the state promote to.
        param_dtype: of the state.
        error_on_non_matrix: True refuses parameters of rank 3 or more, which are otherwise matrices of the
            last axis against all others.
        collection_name: where the state is kept.

    Example:
        >>> import jax, flax.linen as nn
        >>> from jaxnorm import linen as jnl
        >>> x = jax.random.normal(jax.random.key(0), (4, 8))
        >>> layer = jnl.SpectralNorm(nn.Dense(3))
        >>> variables = layer.init(jax.random.key(1), x, update_stats=False)
        >>> y, updated = layer.apply(variables, x, update_stats=True, mutable=["batch_stats"])
        >>> y_eval = layer.apply({**variables, **updated}, x, update_stats=False)
        >>> for name, shape in jax.tree.map(jax.numpy.shape, updated)["batch_stats"].items():
        ...     print(name, shape)
        layer_instance/kernel/sigma ()
        layer_instance/kernel/u (1, 3)
    """

    layer_instance: nn.Module
    n_steps: int | None = 1
    epsilon: float = 1e-12
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    error_on_non_matrix: bool = False
    collection_name: str = "batch_stats"

    @nn.compact
    @explaining_fields
    def __call__(
        self,
        *args: Any,
        update_stats: bool | None = None,
        use_running_average: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the layer with normalized weights.

        Args:
            *args: for the layer.
            update_stats: True (training) stores the direction that this call came to, where the next one
                continues; the collection must then be mutable. False (evaluation) stores nothing.
            use_running_average: says the same the other way round, as batch norm does, if ``update_stats``
                does not; and is for the layer as well, if it takes one.
            **kwargs: for the layer.

        Returns:
            What the layer returns.

        Raises:
            ValueError: neither ``update_stats`` nor ``use_running_average`` is given, a parameter has rank 3
                or more with ``error_on_non_matrix``, or anything that `jaxnorm.spectral_norm` refuses.
        """
        updating = is_updating(update_stats, use_running_average)

        def normalized(path: str, weight: jax.Array) -> jax.Array:
            if not has_spectral_norm(weight, self.n_steps, self.error_on_non_matrix):
                return weight
            stored = self._stored(path, weight)
            w, updated = spectral_norm(
                weight,
                SpectralState(*(variable.value for variable in stored)),
                n_steps=self.n_steps,
                epsilon=self.epsilon,
                dtype=self.dtype,
            )
            if updating and not self.is_initializing():
                for variable, value in zip(stored, updated, strict=True):
                    variable.value = value
            return w

        return call_with(normalized, self.layer_instance, use_running_average, *args, **kwargs)

    @nn.nowrap
    def _stored(self, path: str, weight: jax.Array) -> list[nn.Variable]:
        """The variables of `SpectralState`, created on first use."""
        collection, names = self.collection_name, [f"{path}/{n}" for n in SpectralState._fields]
        if all(self.has_variable(collection, name) for name in names):
            return [self.variable(collection, name) for name in names]
        fresh = init_spectral_norm(self.make_rng("params"), weight, self.param_dtype)
        return [
            self.variable(collection, name, lambda value: value, value)
            for name, value in zip(names, fresh, strict=True)
        ]
