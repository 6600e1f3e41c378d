"""Linen modules for the norms that Flax does not have, with the fields and docstrings of their recipes."""

from ..norms._act_norm import ActNormRecipe
from ..norms._ada_layer_norm import AdaLayerNormRecipe, AdaLayerNormZeroRecipe
from ..norms._adain import AdaINRecipe
from ..norms._batch_norm_of_domain import DomainBatchNormRecipe
from ..norms._batch_renorm import BatchRenormRecipe
from ..norms._conditional_batch_norm import ConditionalBatchNormRecipe
from ..norms._derf import DerfRecipe
from ..norms._dynamic_tanh import DynamicTanhRecipe
from ..norms._evo_norm_b0 import EvoNormB0Recipe
from ..norms._evo_norm_s0 import EvoNormS0Recipe
from ..norms._filter_response_norm import FilterResponseNormRecipe
from ..norms._frozen_batch_norm import FrozenBatchNormRecipe
from ..norms._global_response_norm import GlobalResponseNormRecipe
from ..norms._iterative_whitening import IterativeWhiteningRecipe
from ..norms._mean_only_batch_norm import MeanOnlyBatchNormRecipe
from ..norms._pixel_norm import PixelNormRecipe
from ..norms._qk_norm import QKNormRecipe
from ..norms._scale_norm import ScaleNormRecipe
from ..norms._spade import SpadeRecipe
from ..norms._switchable_norm import SwitchableNormRecipe
from ._from_recipe import FromConditionedRecipe, FromRecipe


class ActNorm(ActNormRecipe, FromRecipe): ...


class AdaIN(AdaINRecipe, FromConditionedRecipe): ...


class AdaLayerNorm(AdaLayerNormRecipe, FromConditionedRecipe): ...


class AdaLayerNormZero(AdaLayerNormZeroRecipe, FromConditionedRecipe): ...


class BatchRenorm(BatchRenormRecipe, FromRecipe): ...


class ConditionalBatchNorm(ConditionalBatchNormRecipe, FromConditionedRecipe): ...


class Derf(DerfRecipe, FromRecipe): ...


class DomainBatchNorm(DomainBatchNormRecipe, FromConditionedRecipe): ...


class DynamicTanh(DynamicTanhRecipe, FromRecipe): ...


class EvoNormB0(EvoNormB0Recipe, FromRecipe): ...


class EvoNormS0(EvoNormS0Recipe, FromRecipe): ...


class FilterResponseNorm(FilterResponseNormRecipe, FromRecipe): ...


class FrozenBatchNorm(FrozenBatchNormRecipe, FromRecipe): ...


class GlobalResponseNorm(GlobalResponseNormRecipe, FromRecipe): ...


class IterativeWhitening(IterativeWhiteningRecipe, FromRecipe): ...


class MeanOnlyBatchNorm(MeanOnlyBatchNormRecipe, FromRecipe): ...


class PixelNorm(PixelNormRecipe, FromRecipe): ...


class QKNorm(QKNormRecipe, FromConditionedRecipe): ...


class ScaleNorm(ScaleNormRecipe, FromRecipe): ...


class Spade(SpadeRecipe, FromConditionedRecipe): ...


class SwitchableNorm(SwitchableNormRecipe, FromRecipe): ...
