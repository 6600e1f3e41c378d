"""Selects norms by name."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ..norms._choice import choose
from ._batch_family import (
    BatchRenorm,
    EvoNormB0,
    FrozenBatchNorm,
    IterativeWhitening,
    MeanOnlyBatchNorm,
    SwitchableNorm,
)
from ._batch_norm import BatchNorm, GhostBatchNorm
from ._group_norm import GroupNorm
from ._instance_norm import InstanceNorm
from ._layer_norm import LayerNorm
from ._local_response_norm import LocalResponseNorm
from ._reparameterized import MagnitudePreserving, ScaledWeightStandardization
from ._rms_norm import RMSNorm
from ._sample_family import (
    ActNorm,
    Derf,
    DynamicTanh,
    EvoNormS0,
    FilterResponseNorm,
    GlobalResponseNorm,
    PixelNorm,
    ScaleNorm,
)
from ._spectral_norm import SpectralNorm
from ._weight_norm import WeightNorm
from ._weight_standardization import WeightStandardization


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


_NORMS: dict[str, Callable[..., nnx.Module]] = {
    "batch": BatchNorm,
    "layer": LayerNorm,
    "rms": RMSNorm,
    "group": GroupNorm,
    "instance": InstanceNorm,
    "local_response": LocalResponseNorm,
    "none": NoNorm,
    "act": ActNorm,
    "batch_renorm": BatchRenorm,
    "derf": Derf,
    "dynamic_tanh": DynamicTanh,
    "evo_b0": EvoNormB0,
    "evo_s0": EvoNormS0,
    "filter_response": FilterResponseNorm,
    "frozen_batch": FrozenBatchNorm,
    "ghost_batch": GhostBatchNorm,
    "global_response": GlobalResponseNorm,
    "iterative_whitening": IterativeWhitening,
    "mean_only_batch": MeanOnlyBatchNorm,
    "pixel": PixelNorm,
    "scale": ScaleNorm,
    "switchable": SwitchableNorm,
    "magnitude_preserving": MagnitudePreserving,
    "scaled_weight_standardization": ScaledWeightStandardization,
    "spectral": SpectralNorm,
    "weight": WeightNorm,
    "weight_standardization": WeightStandardization,
}


def get_norm(name: str, **options: Any) -> Callable[..., nnx.Module]:
    """Returns the constructor of a norm, which a model can take as an argument.

    The norms of activations are ``batch``, ``layer``, ``rms``, ``group``, ``instance``, ``local_response``,
    ``none``, ``act``, ``batch_renorm``, ``derf``, ``dynamic_tanh``, ``evo_b0``, ``evo_s0``,
    ``filter_response``, ``frozen_batch``, ``ghost_batch``, ``global_response``, ``iterative_whitening``,
    ``mean_only_batch``, ``pixel``, ``scale`` and ``switchable``. Construct each as
    ``norm(num_features, rngs=rngs)``. The call takes an optional ``use_running_average`` and ``mask``; a norm
    ignores the arguments it does not need.

    The norms of weights wrap a layer or a model: ``magnitude_preserving``, ``scaled_weight_standardization``,
    ``spectral``, ``weight`` and ``weight_standardization``. Construct each as ``norm(layer, rngs=rngs)``.

    Args:
        name: one of the names above.
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
    return choose(_NORMS, name, **options)
