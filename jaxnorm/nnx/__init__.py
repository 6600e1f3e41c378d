"""Flax NNX modules for the norms of `jaxnorm`, with the names, arguments and variables of Flax."""

from ._batch_family import (
    BatchRenorm as BatchRenorm,
    EvoNormB0 as EvoNormB0,
    FrozenBatchNorm as FrozenBatchNorm,
    IterativeWhitening as IterativeWhitening,
    MeanOnlyBatchNorm as MeanOnlyBatchNorm,
    SwitchableNorm as SwitchableNorm,
)
from ._batch_norm import BatchNorm as BatchNorm, GhostBatchNorm as GhostBatchNorm
from ._conditioned_family import (
    AdaIN as AdaIN,
    AdaLayerNorm as AdaLayerNorm,
    AdaLayerNormZero as AdaLayerNormZero,
    ConditionalBatchNorm as ConditionalBatchNorm,
    DomainBatchNorm as DomainBatchNorm,
    QKNorm as QKNorm,
    Spade as Spade,
)
from ._get_norm import get_norm as get_norm
from ._group_norm import GroupNorm as GroupNorm
from ._instance_norm import InstanceNorm as InstanceNorm
from ._layer_norm import LayerNorm as LayerNorm
from ._local_response_norm import LocalResponseNorm as LocalResponseNorm
from ._reparameterized import (
    MagnitudePreserving as MagnitudePreserving,
    Reparameterized as Reparameterized,
    ScaledWeightStandardization as ScaledWeightStandardization,
)
from ._rms_norm import RMSNorm as RMSNorm
from ._sample_family import (
    ActNorm as ActNorm,
    Derf as Derf,
    DynamicTanh as DynamicTanh,
    EvoNormS0 as EvoNormS0,
    FilterResponseNorm as FilterResponseNorm,
    GlobalResponseNorm as GlobalResponseNorm,
    PixelNorm as PixelNorm,
    ScaleNorm as ScaleNorm,
)
from ._spectral_norm import SpectralNorm as SpectralNorm
from ._weight_norm import WeightNorm as WeightNorm
from ._weight_standardization import WeightStandardization as WeightStandardization
