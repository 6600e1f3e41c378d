"""Linen modules for the norms that Flax does not have, with the fields and docstrings of their recipes."""

from ..norms.batch._batch_renorm import BatchRenormRecipe
from ..norms.batch._evo_norm_b0 import EvoNormB0Recipe
from ..norms.batch._evo_norm_b1 import EvoNormB1Recipe
from ..norms.batch._evo_norm_b2 import EvoNormB2Recipe
from ..norms.batch._frozen_batch_norm import FrozenBatchNormRecipe
from ..norms.batch._input_norm import InputNormRecipe
from ..norms.batch._iterative_whitening import IterativeWhiteningRecipe
from ..norms.batch._mean_only_batch_norm import MeanOnlyBatchNormRecipe
from ..norms.batch._switchable_norm import SwitchableNormRecipe
from ..norms.conditioned._ada_group_norm import AdaGroupNormRecipe
from ..norms.conditioned._ada_layer_norm import AdaLayerNormRecipe, AdaLayerNormZeroRecipe
from ..norms.conditioned._ada_rms_norm import AdaRMSNormRecipe, AdaRMSNormZeroRecipe
from ..norms.conditioned._adain import AdaINRecipe
from ..norms.conditioned._add_norm import AddLayerNormRecipe, AddRMSNormRecipe
from ..norms.conditioned._batch_norm_of_domain import DomainBatchNormRecipe
from ..norms.conditioned._conditional_batch_norm import ConditionalBatchNormRecipe
from ..norms.conditioned._gated_rms_norm import GatedRMSNormRecipe
from ..norms.conditioned._qk_norm import QKNormRecipe
from ..norms.conditioned._spade import SpadeBatchNormRecipe, SpadeGroupNormRecipe, SpadeRecipe
from ..norms.sample._act_norm import ActNormRecipe
from ..norms.sample._derf import DerfRecipe
from ..norms.sample._dynamic_tanh import DynamicTanhRecipe
from ..norms.sample._evo_norm_s0 import EvoNormS0Recipe
from ..norms.sample._evo_norm_s1 import EvoNormS1Recipe
from ..norms.sample._evo_norm_s2 import EvoNormS2Recipe
from ..norms.sample._filter_response_norm import FilterResponseNormRecipe
from ..norms.sample._global_response_norm import GlobalResponseNormRecipe
from ..norms.sample._layer_scale import LayerScaleRecipe
from ..norms.sample._local_response_norm import LocalResponseNormRecipe
from ..norms.sample._pixel_norm import PixelNormRecipe
from ..norms.sample._scale_norm import ScaleNormRecipe
from ..norms.sample._sim_norm import SimNormRecipe
from ..norms.weight._magnitude_preserving import MagnitudePreservingRecipe
from ..norms.weight._reparameterized import ReparameterizedRecipe
from ..norms.weight._scaled_weight_standardization import ScaledWeightStandardizationRecipe
from ..norms.weight._weight_standardization import WeightStandardizationRecipe
from ._from_recipe import FromConditionedRecipe, FromRecipe
from ._from_weight_recipe import FromWeightRecipe


class ActNorm(ActNormRecipe, FromRecipe): ...


class AdaIN(AdaINRecipe, FromConditionedRecipe): ...


class AdaLayerNorm(AdaLayerNormRecipe, FromConditionedRecipe): ...


class AdaLayerNormZero(AdaLayerNormZeroRecipe, FromConditionedRecipe): ...


class AdaRMSNorm(AdaRMSNormRecipe, FromConditionedRecipe): ...


class AdaRMSNormZero(AdaRMSNormZeroRecipe, FromConditionedRecipe): ...


class AdaGroupNorm(AdaGroupNormRecipe, FromConditionedRecipe): ...


class AddLayerNorm(AddLayerNormRecipe, FromConditionedRecipe): ...


class AddRMSNorm(AddRMSNormRecipe, FromConditionedRecipe): ...


class BatchRenorm(BatchRenormRecipe, FromRecipe): ...


class ConditionalBatchNorm(ConditionalBatchNormRecipe, FromConditionedRecipe): ...


class Derf(DerfRecipe, FromRecipe): ...


class DomainBatchNorm(DomainBatchNormRecipe, FromConditionedRecipe): ...


class DynamicTanh(DynamicTanhRecipe, FromRecipe): ...


class EvoNormB0(EvoNormB0Recipe, FromRecipe): ...


class EvoNormB1(EvoNormB1Recipe, FromRecipe): ...


class EvoNormB2(EvoNormB2Recipe, FromRecipe): ...


class EvoNormS0(EvoNormS0Recipe, FromRecipe): ...


class EvoNormS1(EvoNormS1Recipe, FromRecipe): ...


class EvoNormS2(EvoNormS2Recipe, FromRecipe): ...


class FilterResponseNorm(FilterResponseNormRecipe, FromRecipe): ...


class FrozenBatchNorm(FrozenBatchNormRecipe, FromRecipe): ...


class GatedRMSNorm(GatedRMSNormRecipe, FromConditionedRecipe): ...


class GlobalResponseNorm(GlobalResponseNormRecipe, FromRecipe): ...


class InputNorm(InputNormRecipe, FromRecipe): ...


class IterativeWhitening(IterativeWhiteningRecipe, FromRecipe): ...


class LayerScale(LayerScaleRecipe, FromRecipe): ...


class LocalResponseNorm(LocalResponseNormRecipe, FromRecipe): ...


class MagnitudePreserving(MagnitudePreservingRecipe, FromWeightRecipe): ...


class MeanOnlyBatchNorm(MeanOnlyBatchNormRecipe, FromRecipe): ...


class PixelNorm(PixelNormRecipe, FromRecipe): ...


class QKNorm(QKNormRecipe, FromConditionedRecipe): ...


class Reparameterized(ReparameterizedRecipe, FromWeightRecipe): ...


class ScaleNorm(ScaleNormRecipe, FromRecipe): ...


class ScaledWeightStandardization(ScaledWeightStandardizationRecipe, FromWeightRecipe): ...


class SimNorm(SimNormRecipe, FromRecipe): ...


class Spade(SpadeRecipe, FromConditionedRecipe): ...


class SpadeBatchNorm(SpadeBatchNormRecipe, FromConditionedRecipe): ...


class SpadeGroupNorm(SpadeGroupNormRecipe, FromConditionedRecipe): ...


class SwitchableNorm(SwitchableNormRecipe, FromRecipe): ...


class WeightStandardization(WeightStandardizationRecipe, FromWeightRecipe): ...
