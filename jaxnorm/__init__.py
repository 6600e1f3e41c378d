"""Exact, fast normalization for JAX, beginning with batch norm: pure functions over explicit state.

The same as Flax modules is in `jaxnorm.linen` and `jaxnorm.nnx`. This package imports jax, never Flax.
"""

from .core._moments import moments as moments
from .core._pool import Moments as Moments, combine as combine, pool as pool
from .core._running import (
    RunningStats as RunningStats,
    init_running_stats as init_running_stats,
    update_running_stats as update_running_stats,
)
from .norms._batch_norm import (
    batch_norm as batch_norm,
    batch_norm_inference as batch_norm_inference,
)
from .norms._group_norm import group_norm as group_norm
from .norms._instance_norm import (
    instance_norm as instance_norm,
    tracked_instance_norm as tracked_instance_norm,
)
from .norms._l2_normalize import l2_normalize as l2_normalize
from .norms._layer_norm import layer_norm as layer_norm
from .norms._local_response_norm import local_response_norm as local_response_norm
from .norms._rms_norm import rms_norm as rms_norm
from .norms._spectral_norm import (
    SpectralState as SpectralState,
    init_spectral_norm as init_spectral_norm,
    spectral_norm as spectral_norm,
)
from .norms._weight_norm import weight_norm as weight_norm
from .norms._weight_standardization import weight_standardization as weight_standardization

__version__ = "0.1.0"
