"""`SpectralNorm` as an NNX module."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ..core.calling._arguments import check_fields, own_arguments
from ..core.calling._explained import explained
from ..norms._shared._flags import is_updating
from ..norms.weight._spectral_norm import (
    SpectralState,
    has_spectral_norm,
    init_spectral_norm,
    spectral_norm,
)
from ._transformable import transformable
from ._variables import store
from ._wrapped import Path, call_with, parameters_of


class SpectralNorm(nnx.Module):
    """Spectral norm of the wrapped layer, with all arguments of `flax.nnx.SpectralNorm`.

    Computes `jaxnorm.spectral_norm` of each of the layer's parameters of rank 2 or more in every call. The
    parameters themselves do not change. ``batch_stats`` holds the state of each, ``u`` and ``sigma``, as
    `nnx.BatchStat`, keyed by the path of the parameter and the name. ``.train()`` and ``.eval()`` set whether
    calls update it.

    Args:
        layer_instance: the layer to wrap.
        n_steps: number of power iteration steps per call. 0 leaves the layer unchanged; None computes the
            exact singular value.
        epsilon: added to the squared length when a direction is normalized.
        dtype: dtype of the normalized weights; None is the dtype that weights and state promote to.
        param_dtype: dtype of the state.
        error_on_non_matrix: if True, raises for parameters of rank 3 or more. If False, flattens all their
            axes but the last.
        update_stats: True (training) stores the new state, from which the next call continues. The call can
            override it.
        rngs: random streams for the initial directions.

    Raises:
        ValueError: If a parameter has rank 3 or more and ``error_on_non_matrix`` is True.

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
        own = own_arguments(self, SpectralNorm.__init__)
        check_fields({**own, "update_stats": update_stats})
        self.use_running_average: bool = (
            not update_stats
        )  # the attribute that .train() and .eval() set
        batch_stats: dict[Path, nnx.BatchStat[jax.Array]] = {}
        for path, weight in parameters_of(layer_instance):
            if has_spectral_norm(weight[...], n_steps, error_on_non_matrix):
                fresh = init_spectral_norm(rngs.params(), weight[...], param_dtype)
                for name, value in fresh._asdict().items():
                    batch_stats[*path, name] = nnx.BatchStat(value)
        self.batch_stats: dict[Path, nnx.BatchStat[jax.Array]] = nnx.data(batch_stats)

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
            x: first argument for the layer.
            update_stats: True for training, False for evaluation; overrides the module's setting.
            *args: positional arguments for the layer.
            use_running_average: the opposite of ``update_stats``, as in batch norm; used if ``update_stats``
                is None. Also passed on to the layer if it takes this argument.
            **kwargs: keyword arguments for the layer.

        Returns:
            The output of the layer.

        Raises:
            ValueError: If an argument is invalid for `jaxnorm.spectral_norm`.
        """
        evaluating = self.use_running_average
        if use_running_average is not None:
            evaluating = use_running_average
        updating = is_updating(update_stats, evaluating)

        def normalized(path: Path, weight: nnx.Param) -> jax.Array | None:
            if not has_spectral_norm(weight[...], self.n_steps, self.error_on_non_matrix):
                return weight[...] if weight.ndim > 1 else None
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
        """Sets ``use_running_average``; called by `nnx.view`.

        Args:
            use_running_average: True for evaluation, False for training; None leaves the setting unchanged.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
