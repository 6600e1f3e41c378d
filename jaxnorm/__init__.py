"""Exact, fast normalization for JAX, as pure functions over explicit state.

`jaxnorm.linen` and `jaxnorm.nnx` provide the same norms as Flax modules. This package imports only jax, not
Flax.
"""

from .core._moments import moments as moments
from .core._pool import Moments as Moments, combine as combine, pool as pool
from .core._portable import portable as portable
from .core._running import (
    RunningStats as RunningStats,
    init_running_stats as init_running_stats,
    update_running_stats as update_running_stats,
)
from .norms.batch._batch_norm import (
    batch_norm as batch_norm,
    batch_norm_inference as batch_norm_inference,
)
from .norms.batch._batch_norm_adapted import batch_norm_adapted as batch_norm_adapted
from .norms.batch._batch_renorm import (
    batch_renorm as batch_renorm,
    batch_renorm_inference as batch_renorm_inference,
)
from .norms.batch._evo_norm_b0 import (
    evo_norm_b0 as evo_norm_b0,
    evo_norm_b0_inference as evo_norm_b0_inference,
)
from .norms.batch._evo_norm_b1 import (
    evo_norm_b1 as evo_norm_b1,
    evo_norm_b1_inference as evo_norm_b1_inference,
)
from .norms.batch._evo_norm_b2 import (
    evo_norm_b2 as evo_norm_b2,
    evo_norm_b2_inference as evo_norm_b2_inference,
)
from .norms.batch._input_norm import (
    input_norm as input_norm,
    input_norm_inference as input_norm_inference,
    input_norm_inverse as input_norm_inverse,
)
from .norms.batch._input_stats import InputStats as InputStats, init_input_norm as init_input_norm
from .norms.batch._iterative_whitening import (
    iterative_whitening as iterative_whitening,
    iterative_whitening_inference as iterative_whitening_inference,
)
from .norms.batch._mean_only_batch_norm import (
    mean_only_batch_norm as mean_only_batch_norm,
    mean_only_batch_norm_inference as mean_only_batch_norm_inference,
)
from .norms.batch._switchable_norm import (
    switchable_norm as switchable_norm,
    switchable_norm_inference as switchable_norm_inference,
)
from .norms.batch._whitening_stats import (
    WhiteningStats as WhiteningStats,
    init_whitening as init_whitening,
)
from .norms.conditioned._ada_group_norm import ada_group_norm as ada_group_norm
from .norms.conditioned._ada_layer_norm import ada_layer_norm as ada_layer_norm
from .norms.conditioned._ada_rms_norm import ada_rms_norm as ada_rms_norm
from .norms.conditioned._adain import adain as adain
from .norms.conditioned._add_norm import (
    add_layer_norm as add_layer_norm,
    add_rms_norm as add_rms_norm,
)
from .norms.conditioned._batch_norm_of_domain import (
    stats_of_domain as stats_of_domain,
    with_stats_of_domain as with_stats_of_domain,
)
from .norms.conditioned._gated_rms_norm import gated_rms_norm as gated_rms_norm
from .norms.conditioned._modulate import modulate as modulate
from .norms.conditioned._qk_norm import qk_norm as qk_norm
from .norms.sample._act_norm import (
    act_norm as act_norm,
    act_norm_inverse as act_norm_inverse,
    init_act_norm as init_act_norm,
)
from .norms.sample._derf import derf as derf
from .norms.sample._dynamic_tanh import dynamic_tanh as dynamic_tanh
from .norms.sample._evo_norm_s0 import evo_norm_s0 as evo_norm_s0
from .norms.sample._evo_norm_s1 import evo_norm_s1 as evo_norm_s1
from .norms.sample._evo_norm_s2 import evo_norm_s2 as evo_norm_s2
from .norms.sample._filter_response_norm import filter_response_norm as filter_response_norm
from .norms.sample._global_response_norm import global_response_norm as global_response_norm
from .norms.sample._group_norm import group_norm as group_norm
from .norms.sample._instance_norm import (
    instance_norm as instance_norm,
    tracked_instance_norm as tracked_instance_norm,
)
from .norms.sample._l2_normalize import l2_normalize as l2_normalize
from .norms.sample._layer_norm import layer_norm as layer_norm
from .norms.sample._layer_scale import layer_scale as layer_scale
from .norms.sample._local_response_norm import local_response_norm as local_response_norm
from .norms.sample._lp_normalize import lp_normalize as lp_normalize
from .norms.sample._pixel_norm import pixel_norm as pixel_norm
from .norms.sample._rms_norm import rms_norm as rms_norm
from .norms.sample._scale_norm import scale_norm as scale_norm
from .norms.sample._sim_norm import sim_norm as sim_norm
from .norms.weight._conv_spectral_norm import conv_spectral_norm as conv_spectral_norm
from .norms.weight._magnitude_preserving import (
    forced_magnitude as forced_magnitude,
    magnitude_preserving as magnitude_preserving,
)
from .norms.weight._scaled_weight_standardization import (
    scaled_weight_standardization as scaled_weight_standardization,
)
from .norms.weight._spectral_norm import (
    SpectralState as SpectralState,
    init_spectral_norm as init_spectral_norm,
    spectral_norm as spectral_norm,
)
from .norms.weight._weight_norm import weight_norm as weight_norm
from .norms.weight._weight_standardization import weight_standardization as weight_standardization

__version__ = "0.2.0"
