"""Tools for models with norms, including Flax's own: they take and return models and trees of variables."""

from ..core.calling import _needs_flax as _needs_flax
from ..norms._shared._running_norm import RunningNorm as RunningNorm
from ._convert._convert import convert as convert
from ._convert._torch_options import torch_options as torch_options
from ._fold._fold import Folded as Folded, fold as fold
from ._freeze import freeze as freeze, unfreeze as unfreeze
from ._masks import decay_mask as decay_mask, norm_mask as norm_mask
from ._parity import Parity as Parity, assert_parity as assert_parity
from ._stats._accumulate import Accumulated as Accumulated, accumulate as accumulate
from ._stats._examination import Examination as Examination, LayerHealth as LayerHealth
from ._stats._examine import examine as examine
from ._stats._recalibrate import recalibrate as recalibrate
from ._stats._replicas import pool_replicas as pool_replicas
from ._swap import swap as swap
from ._train_state import TrainState as TrainState, average as average, keep_finite as keep_finite
