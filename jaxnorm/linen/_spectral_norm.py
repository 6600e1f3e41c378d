"""`SpectralNorm` as a Linen module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..core.calling._explained import explaining_fields
from ..norms._shared._flags import is_updating
from ..norms.weight._spectral_norm import (
    SpectralState,
    has_spectral_norm,
    init_spectral_norm,
    spectral_norm,
)
from ._variables import Checked
from ._wrapped import call_with


class SpectralNorm(Checked):
    """Spectral norm of the wrapped layer, with all fields of `flax.linen.SpectralNorm`.

    Computes `jaxnorm.spectral_norm` of each of the layer's parameters of rank 2 or more. The parameters
    themselves do not change. The collection ``collection_name`` holds the state of each, ``u`` and ``sigma``,
    named after the path of the parameter.

    Attributes:
        layer_instance: the layer to wrap.
        n_steps: number of power iteration steps per call. 0 leaves the layer unchanged; None computes the
            exact singular value.
        epsilon: added to the squared length when a direction is normalized.
        dtype: dtype of the normalized weights; None is the dtype that weights and state promote to.
        param_dtype: dtype of the state.
        error_on_non_matrix: if True, raises for parameters of rank 3 or more. If False, flattens all their
            axes but the last.
        collection_name: the collection that holds the state.

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
            *args: positional arguments for the layer.
            update_stats: True (training) stores the new state, from which the next call continues; the
                collection must then be mutable. False (evaluation) stores nothing.
            use_running_average: the opposite of ``update_stats``, as in batch norm; used if ``update_stats``
                is None. Also passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.

        Raises:
            ValueError: If neither ``update_stats`` nor ``use_running_average`` is given, if a parameter has
                rank 3 or more and ``error_on_non_matrix`` is True, or if an argument is invalid for
                `jaxnorm.spectral_norm`.
        """
        updating = is_updating(update_stats, use_running_average)

        def normalized(path: str, weight: jax.Array) -> jax.Array | None:
            if not has_spectral_norm(weight, self.n_steps, self.error_on_non_matrix):
                return weight if weight.ndim > 1 else None
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
        """Returns the variables of `SpectralState` and creates them on first use."""
        collection, names = self.collection_name, [f"{path}/{n}" for n in SpectralState._fields]
        if all(self.has_variable(collection, name) for name in names):
            return [self.variable(collection, name) for name in names]
        fresh = init_spectral_norm(self.make_rng("params"), weight, self.param_dtype)
        return [
            self.variable(collection, name, lambda value: value, value)
            for name, value in zip(names, fresh, strict=True)
        ]
