"""`SpectralNorm` as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ..core._arguments import check_fields
from ..core._explained import explained
from ..norms._choice import is_updating
from ..norms._spectral_norm import (
    SpectralState,
    has_spectral_norm,
    init_spectral_norm,
    spectral_norm,
)
from ._transformable import transformable
from ._variables import store
from ._wrapped import Path, call_with


class SpectralNorm(nnx.Module):
    """Spectral norm of the layer it wraps: `flax.nnx.SpectralNorm`, argument for argument.

    Computes `jaxnorm.spectral_norm` of each of the layer's parameters of rank 2 or more, in every call;
    the parameters themselves stay as they are. ``batch_stats`` has two `nnx.BatchStat` for each, by its
    path: ``u`` and ``sigma``. ``.train()`` and ``.eval()`` say whether a call updates them.

    Args:
        layer_instance: the layer to wrap.
        n_steps: steps of power iteration in a call. 0 leaves the layer as it is, None is the exact singular
            value.
        epsilon: added to the square of the length that directions are divided by.
        dtype: of the normalized weights; None is what they and the state promote to.
        param_dtype: of the state.
        error_on_non_matrix: True refuses parameters of rank 3 or more, which are otherwise matrices of the
            last axis against all others.
        update_stats: True (training) stores the direction that a call came to, where the next one
            continues. The call may say otherwise.
        rngs: random streams for the first directions.

    Raises:
        ValueError: a parameter of rank 3 or more with ``error_on_non_matrix``.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx
        >>> rngs = nnx.Rngs(0)
        >>> layer = jnx.SpectralNorm(nnx.Linear(8, 3, rngs=rngs), rngs=rngs)
        >>> y = layer(jax.random.normal(jax.random.key(0), (4, 8)))
        >>> layer.eval()
        >>> print(y.shape, layer.batch_stats[("kernel", "u")].shape)
        (4, 3) (1, 3)
    """

    @explained
    def __init__(
        self,
        layer_instance: nnx.Module,
        *,
        n_steps: int | None = 1,
        epsilon: float = 1e-12,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        error_on_non_matrix: bool = False,
        update_stats: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.layer_instance = layer_instance
        self.n_steps = n_steps
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.error_on_non_matrix = error_on_non_matrix
        check_fields({**vars(self), "update_stats": update_stats})
        self.use_running_average = not update_stats  # the name that .train() and .eval() set
        batch_stats: dict[Path, nnx.BatchStat] = {}
        for path, weight in nnx.to_flat_state(nnx.state(layer_instance, nnx.Param)):
            if has_spectral_norm(weight[...], n_steps, error_on_non_matrix):
                fresh = init_spectral_norm(rngs.params(), weight[...], param_dtype)
                for name, value in fresh._asdict().items():
                    batch_stats[*path, name] = nnx.BatchStat(value)
        self.batch_stats = nnx.data(batch_stats)

    @transformable
    def __call__(
        self,
        x: jax.Array,
        update_stats: bool | None = None,
        *args: Any,
        use_running_average: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Calls the layer with normalized weights.

        Args:
            x: for the layer.
            update_stats: True (training) or False (evaluation), whatever the module says.
            *args: for the layer.
            use_running_average: says the same the other way round, as batch norm does, if ``update_stats``
                does not; and is for the layer as well, if it takes one.
            **kwargs: for the layer.

        Returns:
            What the layer returns.

        Raises:
            ValueError: anything that `jaxnorm.spectral_norm` refuses.
        """
        evaluating = self.use_running_average
        if use_running_average is not None:
            evaluating = use_running_average
        updating = is_updating(update_stats, evaluating)

        def normalized(path: Path, weight: nnx.Param) -> jax.Array:
            if not has_spectral_norm(weight[...], self.n_steps, self.error_on_non_matrix):
                return weight[...]
            stored = [self.batch_stats[*path, name] for name in SpectralState._fields]
            w, updated = spectral_norm(
                weight[...],
                SpectralState(*(variable[...] for variable in stored)),
                n_steps=self.n_steps,
                epsilon=self.epsilon,
                dtype=self.dtype,
            )
            if updating:
                for variable, value in zip(stored, updated, strict=True):
                    store(variable, value)
            return w

        return call_with(normalized, self.layer_instance, use_running_average, x, *args, **kwargs)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """What `nnx.view` calls.

        Args:
            use_running_average: evaluation (True) or training (False); None leaves it as it is.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
