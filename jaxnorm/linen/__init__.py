"""The norms as Flax Linen modules: Flax's names, fields and variables, `jaxnorm`'s answers."""

from ._batch_norm import BatchNorm as BatchNorm
from ._get_norm import get_norm as get_norm
from ._group_norm import GroupNorm as GroupNorm
from ._instance_norm import InstanceNorm as InstanceNorm
from ._layer_norm import LayerNorm as LayerNorm
from ._local_response_norm import LocalResponseNorm as LocalResponseNorm
from ._rms_norm import RMSNorm as RMSNorm
from ._spectral_norm import SpectralNorm as SpectralNorm
from ._weight_norm import WeightNorm as WeightNorm
from ._weight_standardization import WeightStandardization as WeightStandardization
