"""Flax NNX modules for the norms of `jaxnorm`, with the names, arguments and variables of Flax."""

from ..core.calling import _needs_flax as _needs_flax
from ..norms._registry import NormName as NormName
from ._batch_norm import BatchNorm as BatchNorm, GhostBatchNorm as GhostBatchNorm
from ._derived import (
    ActNorm as ActNorm,
    AdaGroupNorm as AdaGroupNorm,
    AdaIN as AdaIN,
    AdaLayerNorm as AdaLayerNorm,
    AdaLayerNormZero as AdaLayerNormZero,
    AdaRMSNorm as AdaRMSNorm,
    AdaRMSNormZero as AdaRMSNormZero,
    AddLayerNorm as AddLayerNorm,
    AddRMSNorm as AddRMSNorm,
    BatchRenorm as BatchRenorm,
    ConditionalBatchNorm as ConditionalBatchNorm,
    Derf as Derf,
    DomainBatchNorm as DomainBatchNorm,
    DynamicTanh as DynamicTanh,
    EvoNormB0 as EvoNormB0,
    EvoNormB1 as EvoNormB1,
    EvoNormB2 as EvoNormB2,
    EvoNormS0 as EvoNormS0,
    EvoNormS1 as EvoNormS1,
    EvoNormS2 as EvoNormS2,
    FilterResponseNorm as FilterResponseNorm,
    FrozenBatchNorm as FrozenBatchNorm,
    GatedRMSNorm as GatedRMSNorm,
    GlobalResponseNorm as GlobalResponseNorm,
    InputNorm as InputNorm,
    IterativeWhitening as IterativeWhitening,
    LayerScale as LayerScale,
    LocalResponseNorm as LocalResponseNorm,
    MagnitudePreserving as MagnitudePreserving,
    MeanOnlyBatchNorm as MeanOnlyBatchNorm,
    PixelNorm as PixelNorm,
    QKNorm as QKNorm,
    Reparameterized as Reparameterized,
    ScaledWeightStandardization as ScaledWeightStandardization,
    ScaleNorm as ScaleNorm,
    SimNorm as SimNorm,
    Spade as Spade,
    SpadeBatchNorm as SpadeBatchNorm,
    SpadeGroupNorm as SpadeGroupNorm,
    SwitchableNorm as SwitchableNorm,
    WeightStandardization as WeightStandardization,
)
from ._get_norm import get_norm as get_norm
from ._group_norm import GroupNorm as GroupNorm
from ._instance_norm import InstanceNorm as InstanceNorm
from ._layer_norm import LayerNorm as LayerNorm
from ._rms_norm import RMSNorm as RMSNorm
from ._spectral_norm import SpectralNorm as SpectralNorm
from ._weight_norm import WeightNorm as WeightNorm
