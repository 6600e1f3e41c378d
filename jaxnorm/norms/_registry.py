"""The norms of this package, one entry each.

`get_norm`, the reference pages and the tests take the names of norms, classes and functions from here.
"""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

NormName: TypeAlias = Literal[
    "batch",
    "layer",
    "rms",
    "group",
    "instance",
    "local_response",
    "none",
    "act",
    "batch_renorm",
    "derf",
    "dynamic_tanh",
    "evo_b0",
    "evo_b1",
    "evo_b2",
    "evo_s0",
    "evo_s1",
    "evo_s2",
    "filter_response",
    "frozen_batch",
    "ghost_batch",
    "global_response",
    "iterative_whitening",
    "mean_only_batch",
    "pixel",
    "scale",
    "switchable",
    "magnitude_preserving",
    "scaled_weight_standardization",
    "spectral",
    "weight",
    "weight_standardization",
]
"""The names that `get_norm` accepts."""

Kind: TypeAlias = Literal["batch", "sample", "conditioned", "weight"]
"""What a norm takes its statistics from: the batch, each example or a weight; or it has a second input."""


class Norm(NamedTuple):
    """A norm: where to find it in `jaxnorm`, `jaxnorm.linen` and `jaxnorm.nnx`."""

    kind: Kind
    functions: tuple[str, ...] = ()
    """The functions that compute it; if there is one for evaluation, it comes second."""
    layer: str | None = None
    """The module class, which has the same name in both frameworks."""
    name: NormName | None = None
    """The name of the layer in `get_norm`; None if it cannot replace another norm."""
    helpers: tuple[str, ...] = ()
    """Functions and types for its parameters and state."""


REGISTRY = (
    Norm(
        "batch",
        ("batch_norm", "batch_norm_inference", "batch_norm_adapted"),
        "BatchNorm",
        "batch",
    ),
    Norm("batch", ("batch_norm", "batch_norm_inference"), "GhostBatchNorm", "ghost_batch"),
    Norm("batch", ("batch_norm_inference",), "FrozenBatchNorm", "frozen_batch"),
    Norm("batch", ("batch_renorm", "batch_renorm_inference"), "BatchRenorm", "batch_renorm"),
    Norm(
        "batch",
        ("mean_only_batch_norm", "mean_only_batch_norm_inference"),
        "MeanOnlyBatchNorm",
        "mean_only_batch",
    ),
    Norm("batch", ("switchable_norm", "switchable_norm_inference"), "SwitchableNorm", "switchable"),
    Norm(
        "batch",
        ("iterative_whitening", "iterative_whitening_inference"),
        "IterativeWhitening",
        "iterative_whitening",
        helpers=("init_whitening", "WhiteningStats"),
    ),
    Norm(
        "batch",
        ("input_norm", "input_norm_inference", "input_norm_inverse"),
        "InputNorm",
        helpers=("init_input_norm", "InputStats"),
    ),
    Norm("batch", ("evo_norm_b0", "evo_norm_b0_inference"), "EvoNormB0", "evo_b0"),
    Norm("batch", ("evo_norm_b1", "evo_norm_b1_inference"), "EvoNormB1", "evo_b1"),
    Norm("batch", ("evo_norm_b2", "evo_norm_b2_inference"), "EvoNormB2", "evo_b2"),
    Norm("sample", ("layer_norm",), "LayerNorm", "layer"),
    Norm("sample", ("rms_norm",), "RMSNorm", "rms"),
    Norm("sample", ("group_norm",), "GroupNorm", "group"),
    Norm("sample", ("instance_norm", "tracked_instance_norm"), "InstanceNorm", "instance"),
    Norm("sample", ("local_response_norm",), "LocalResponseNorm", "local_response"),
    Norm("sample", ("l2_normalize",)),
    Norm("sample", ("lp_normalize",)),
    Norm("sample", ("evo_norm_s0",), "EvoNormS0", "evo_s0"),
    Norm("sample", ("evo_norm_s1",), "EvoNormS1", "evo_s1"),
    Norm("sample", ("evo_norm_s2",), "EvoNormS2", "evo_s2"),
    Norm("sample", ("filter_response_norm",), "FilterResponseNorm", "filter_response"),
    Norm("sample", ("global_response_norm",), "GlobalResponseNorm", "global_response"),
    Norm("sample", ("layer_scale",), "LayerScale"),
    Norm("sample", ("scale_norm",), "ScaleNorm", "scale"),
    Norm("sample", ("pixel_norm",), "PixelNorm", "pixel"),
    Norm("sample", ("sim_norm",), "SimNorm"),
    Norm("sample", ("act_norm", "act_norm_inverse"), "ActNorm", "act", helpers=("init_act_norm",)),
    Norm("sample", ("dynamic_tanh",), "DynamicTanh", "dynamic_tanh"),
    Norm("sample", ("derf",), "Derf", "derf"),
    Norm("sample", (), "NoNorm", "none"),
    Norm("conditioned", ("batch_norm", "batch_norm_inference"), "ConditionalBatchNorm"),
    Norm(
        "conditioned",
        ("batch_norm", "batch_norm_inference"),
        "DomainBatchNorm",
        helpers=("stats_of_domain", "with_stats_of_domain"),
    ),
    Norm("conditioned", ("ada_layer_norm",), "AdaLayerNorm"),
    Norm("conditioned", ("ada_layer_norm",), "AdaLayerNormZero"),
    Norm("conditioned", ("ada_rms_norm",), "AdaRMSNorm"),
    Norm("conditioned", ("ada_rms_norm",), "AdaRMSNormZero"),
    Norm("conditioned", ("ada_group_norm",), "AdaGroupNorm"),
    Norm("conditioned", ("adain",), "AdaIN"),
    Norm("conditioned", ("add_layer_norm",), "AddLayerNorm"),
    Norm("conditioned", ("add_rms_norm",), "AddRMSNorm"),
    Norm("conditioned", ("gated_rms_norm",), "GatedRMSNorm"),
    Norm("conditioned", ("instance_norm",), "Spade"),
    Norm("conditioned", ("batch_norm", "batch_norm_inference"), "SpadeBatchNorm"),
    Norm("conditioned", ("group_norm",), "SpadeGroupNorm"),
    Norm("conditioned", ("modulate",)),
    Norm("conditioned", ("qk_norm",), "QKNorm"),
    Norm("weight", ("weight_norm",), "WeightNorm", "weight"),
    Norm("weight", ("weight_standardization",), "WeightStandardization", "weight_standardization"),
    Norm(
        "weight",
        ("scaled_weight_standardization",),
        "ScaledWeightStandardization",
        "scaled_weight_standardization",
    ),
    Norm(
        "weight",
        ("magnitude_preserving", "forced_magnitude"),
        "MagnitudePreserving",
        "magnitude_preserving",
    ),
    Norm("weight", ("conv_spectral_norm",)),
    Norm(
        "weight",
        ("spectral_norm",),
        "SpectralNorm",
        "spectral",
        helpers=("init_spectral_norm", "SpectralState"),
    ),
    Norm("weight", (), "Reparameterized"),
)


def choose(classes: Mapping[str, Any], name: str, **options: Any) -> Callable[..., Any]:
    """Returns the class among ``classes`` of the layer called ``name``, with ``options`` bound to it.

    Raises:
        ValueError: If no layer has that name.
        TypeError: If the class does not accept one of ``options``.
    """
    layers = {norm.name: norm.layer for norm in REGISTRY if norm.name and norm.layer}
    if name not in layers:
        known = {_bare(alias): n.name for n in REGISTRY if n.name for alias in (n.name, n.layer)}
        close = get_close_matches(_bare(name), known, n=1, cutoff=0.75)
        hint = f" Did you mean {known[close[0]]!r}?" if close else ""
        names = ", ".join(get_args(NormName))
        raise ValueError(f"norm must be one of {names}; got {name!r}.{hint}")
    constructor = classes[layers[name]]
    # Report a misspelled option here, not when the model is built.
    inspect.signature(constructor.__init__).bind_partial(None, **options)
    return partial(constructor, **options)


def _bare(name: Any) -> str:
    """The name without case, underscores and the word "norm", as people write it in different ways."""
    return str(name).lower().replace("_", "").replace("norm", "")
