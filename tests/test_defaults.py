"""Defaults are the documented ones, from the papers, Flax and PyTorch.

Defaults that Flax's classes also have are compared with Flax in tests/linen and tests/nnx. The tests here
cover every number and choice of the functions, our modules' additional fields, and initial values.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm as jn
from jaxnorm.norms._registry import REGISTRY
from tests.calls import functions
from tests.modules import KEY, Fields, compiled, loose, normal
from tests.stands_for import (
    CLASSES,
    ROWS,
    SYSTEMS,
    X,
    after_of,
    by_name,
    fields_of,
    is_wrapper,
    made,
    variables_of,
)

pytestmark = pytest.mark.every_case

# Defaults that are the same everywhere: channels last, biased statistics, all parameters.
EVERYWHERE: Fields = {
    "axis": -1,
    "feature_axes": -1,
    "reduction_axes": -1,
    "unbiased": False,
    "unbiased_instances": False,
    "use_scale": True,
    "use_bias": True,
    "use_fast_variance": True,  # Flax's; ignored
    "force_float32_reductions": True,  # Flax's
}
# Defaults of one function.
FUNCTIONS: dict[str, Fields] = {
    "ada_group_norm": {"epsilon": 1e-5, "num_groups": 32},  # guided diffusion
    "ada_layer_norm": {"epsilon": 1e-6},  # DiT
    "ada_rms_norm": {"epsilon": 1e-6},  # k-diffusion
    "add_layer_norm": {"epsilon": 1e-6},  # Flax
    "add_rms_norm": {"epsilon": 1e-6, "scale_offset": 0.0, "scale_after_cast": False},  # Flax
    "adain": {"epsilon": 1e-5},  # pytorch-AdaIN
    "batch_norm": {"epsilon": 1e-5, "momentum": 0.99},  # Flax
    "batch_norm_adapted": {"epsilon": 1e-5},
    "batch_norm_inference": {"epsilon": 1e-5},
    "batch_renorm": {  # paper, Keras
        **{"epsilon": 1e-3, "momentum": 0.99, "rmax": 3.0, "dmax": 5.0},
        "form": "paper",
    },
    "batch_renorm_inference": {"epsilon": 1e-3},
    "conv_spectral_norm": {"n_steps": 1, "padding": "SAME", "strides": (1, 1)},
    "derf": {"alpha": 0.5, "shift": 0.0},  # paper
    "dynamic_tanh": {"alpha": 0.5},  # paper
    "evo_norm_b0": {"epsilon": 1e-3, "momentum": 0.9},  # timm, with momentum 0.1 there
    "evo_norm_b0_inference": {"epsilon": 1e-3},
    "evo_norm_b1": {"epsilon": 1e-5, "momentum": 0.9},  # timm
    "evo_norm_b1_inference": {"epsilon": 1e-5},
    "evo_norm_b2": {"epsilon": 1e-5, "momentum": 0.9},  # timm
    "evo_norm_b2_inference": {"epsilon": 1e-5},
    "evo_norm_s0": {"epsilon": 1e-5, "num_groups": 32},  # paper, timm
    "evo_norm_s1": {"epsilon": 1e-5, "num_groups": 32},  # timm
    "evo_norm_s2": {"epsilon": 1e-5, "num_groups": 32},  # timm
    "filter_response_norm": {"epsilon": 1e-6},  # paper
    "forced_magnitude": {"epsilon": 1e-4},  # EDM2
    "gated_rms_norm": {"epsilon": 1e-6, "num_groups": 1, "norm_before_gate": True},  # Qwen3-Next
    "global_response_norm": {"epsilon": 1e-6},  # ConvNeXt V2
    "group_norm": {"epsilon": 1e-6, "num_groups": 32},  # Flax
    "init_act_norm": {"epsilon": 1e-6},  # Glow
    "init_running_stats": {"cumulative": False},
    "init_whitening": {"num_groups": 1},
    "input_norm": {"epsilon": 1e-8},  # VecNormalize
    "input_norm_inference": {"epsilon": 1e-8},
    "input_norm_inverse": {"epsilon": 1e-8},
    "instance_norm": {"epsilon": 1e-6},  # Flax
    "iterative_whitening": {"epsilon": 1e-5, "momentum": 0.9, "steps": 5},  # paper: momentum 0.1
    "l2_normalize": {"epsilon": 1e-12},  # Flax's helper
    "layer_norm": {"epsilon": 1e-6},  # Flax
    "layer_scale": {"multiplier": 1.0},
    "local_response_norm": {"alpha": 1e-4, "beta": 0.75, "k": 1.0},  # PyTorch
    "lp_normalize": {"epsilon": 1e-12, "p": 2.0},  # PyTorch
    "magnitude_preserving": {"epsilon": 1e-4, "gain": 1.0},  # EDM2
    "mean_only_batch_norm": {"momentum": 0.99},
    "modulate": {"scale_offset": 0.0},
    "pixel_norm": {"epsilon": 1e-8},  # paper
    "qk_norm": {"epsilon": 1e-6, "kind": "rms", "scale_offset": 0.0},  # Qwen3
    "rms_norm": {
        **{"epsilon": 1e-6, "scale_offset": 0.0, "fraction": 1.0},  # Flax
        "scale_after_cast": False,
    },
    "scale_norm": {"epsilon": 1e-10, "scale": 1.0},  # the square of the paper's 1e-5
    "scaled_weight_standardization": {"epsilon": 1e-6},  # timm
    "sim_norm": {"simplex_size": 8},  # TD-MPC2
    "spectral_norm": {"epsilon": 1e-12, "n_steps": 1},  # paper, Flax
    "switchable_norm": {"epsilon": 1e-5, "momentum": 0.9},  # the authors' code
    "switchable_norm_inference": {"epsilon": 1e-5},
    "tracked_instance_norm": {"epsilon": 1e-6, "momentum": 0.99},
    "update_running_stats": {"momentum": 0.99},
    "weight_norm": {"epsilon": 1e-12},  # Flax
    "weight_standardization": {"epsilon": 1e-10},  # big_vision
}
# The function with the same defaults as the class.
OF_CLASS = {norm.layer: norm.functions[0] for norm in REGISTRY if norm.layer and norm.functions}
OF_CLASS |= {"InstanceNorm": "tracked_instance_norm"}
# Defaults that a class adds or changes, and why.
OWN: dict[str, Fields] = {
    "BatchNorm": {"track_running_stats": True},
    "AdaRMSNorm": {"use_shift": True},
    "AdaRMSNormZero": {"use_shift": True},
    "BatchRenorm": {"warmup_steps": 0},
    **{f"EvoNorm{which}": {"nonlinearity": True} for which in ("B0", "B1", "B2", "S0", "S1", "S2")},
    "FilterResponseNorm": {"use_threshold": True},  # the paper's unit
    "GhostBatchNorm": {"track_running_stats": True, "virtual_batch_size": 32},  # the usual size
    "InstanceNorm": {"track_running_stats": False},  # PyTorch
    "IterativeWhitening": {"num_groups": 1},
    "LocalResponseNorm": {"size": 5, "num_features": ()},  # AlexNet; the function has no default
    "PixelNorm": {"num_features": ()},  # there are no parameters
    "QKNorm": {"use_bias": False, "use_key_scale": True},  # language models have no biases
    "ScaledWeightStandardization": {"use_gain": False},  # as WeightStandardization
    "SimNorm": {"num_features": ()},  # there are no parameters
    **{
        name: {"epsilon": 1e-5, "hidden": 128, "kernel_size": 3}  # the authors' code
        for name in ("Spade", "SpadeBatchNorm", "SpadeGroupNorm")
    },
    "SpectralNorm": {
        "collection_name": "batch_stats",
        "error_on_non_matrix": False,
        "update_stats": True,
    },  # Flax
    "WeightStandardization": {"use_gain": False},  # the paper has none
}
# Flax's NNX modules train by default; all others must be told the mode.
TRAINS = {("nnx", name) for name in CLASSES if "use_running_average" in fields_of("nnx", name)}


def choices(parameters: dict[str, Any]) -> Fields:
    """The defaults that are numbers or other choices."""
    return {n: d for n, d in parameters.items() if isinstance(d, bool | int | float | str | tuple)}


@pytest.mark.parametrize("name", sorted(functions()))
def test_function(name: str) -> None:
    """All numbers and choices of a public function match the tables."""
    parameters, own = inspect.signature(getattr(jn, name)).parameters, FUNCTIONS.get(name, {})
    found = choices({n: p.default for n, p in parameters.items()})
    usual = {n: EVERYWHERE[n] for n in found.keys() & EVERYWHERE.keys() - own.keys()}
    assert found == usual | own


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_class(system: str, name: str) -> None:
    """A class has the defaults of its function."""
    documented = EVERYWHERE | FUNCTIONS.get(OF_CLASS.get(name, ""), {}) | OWN.get(name, {})
    known = fields_of(system, name)
    if (system, name) in TRAINS:
        documented["use_running_average"] = False
    found = choices(known)
    assert found == {n: documented.get(n, "not in the table") for n in found}
    for field in ("dtype", "axis_name", "axis_index_groups", "group_size", "virtual_batch_size"):
        assert known.get(field) is None or field in found
    assert known.get("param_dtype", jnp.float32) is jnp.float32


# --- initial values of variables -----------------------------------------------------------------

BEGIN: dict[str, float] = {
    **dict.fromkeys(("scale", "v", "query_scale", "key_scale", "var", "sigma"), 1.0),
    **dict.fromkeys(("mean_weights", "var_weights"), 1.0),
    **dict.fromkeys(("bias", "shift", "threshold", "log_scale", "mean", "steps"), 0.0),
    **dict.fromkeys(("affine_kernel", "affine_bias", "query_bias", "key_bias"), 0.0),
    **dict.fromkeys(("count", "remainder"), 0.0),
    "alpha": 0.5,
}
BEGIN_OWN: dict[str, Any] = {
    "AdaLayerNorm kernel": 0.0,
    "AdaLayerNormZero kernel": 0.0,
    "AdaRMSNorm kernel": 0.0,
    "AdaRMSNormZero kernel": 0.0,
    "AdaGroupNorm kernel": 0.0,
    "GlobalResponseNorm scale": 0.0,  # starts as the identity
    "IterativeWhitening matrix": np.eye(X.shape[-1]),
    "LayerScale scale": 1e-5,  # CaiT with 24 blocks, timm
    "ScaleNorm scale": math.sqrt(X.shape[-1]),  # the root of the number of features
}
# LeCun's initializer: variance 1 / fan-in.
RANDOM = {"Spade kernel", "SpadeBatchNorm kernel", "SpadeGroupNorm kernel"}


def test_variables_begin_as_the_papers_say() -> None:
    """The variables of every class except wrappers start as in the papers, in both systems."""
    names = [name for name in CLASSES if not is_wrapper(name)]

    def run(x: jax.Array) -> Any:
        found: dict[str, Any] = {}
        for name in names:
            fields = dict(ROWS[name].base)
            after = after_of(name, fields, len(x))
            layer, module = (made(system, name, fields) for system in SYSTEMS)
            found[name] = {
                "linen": by_name(layer.init(KEY, x, *after, use_running_average=False)),
                "nnx": {n: variable[...] for n, variable in variables_of(module).items()},
            }
        return found

    for name, systems in compiled(run, X).items():
        for system, variables in systems.items():
            for variable, value in variables.items():
                key = f"{name} {variable}"
                if key in RANDOM:
                    assert 0.5 < np.std(value) * math.sqrt(math.prod(value.shape[:-1])) < 2
                    continue
                begin = BEGIN_OWN.get(key, BEGIN.get(variable))
                assert begin is not None, f"{system}: where {key} begins is not in the table"
                np.testing.assert_allclose(value, np.broadcast_to(begin, value.shape), rtol=1e-6)


def test_wrappers_begin_at_one() -> None:
    """Scales, gains and singular values start at 1, and directions are random with length 1."""

    def run(x: jax.Array) -> Any:
        found = {}
        for name in ("WeightNorm", "WeightStandardization", "SpectralNorm"):
            fields = dict(ROWS[name].base)
            layer, module = (made(system, name, fields) for system in SYSTEMS)
            found[name] = [
                by_name(layer.init(KEY, x, use_running_average=False)),
                {n: variable[...] for n, variable in variables_of(module).items()},
            ]
        return found

    with loose():
        found = compiled(run, normal(X.shape))
    for variables in (v for both in found.values() for v in both):
        own = {n.split("/")[1]: a for n, a in variables.items() if "/" in n}
        assert own
        for name, value in own.items():
            found_here = np.linalg.norm(value) if name == "u" else value
            np.testing.assert_allclose(found_here, np.ones(np.shape(found_here)), rtol=1e-6)


# --- the effect of a default ---------------------------------------------------------------------

SIGNS = np.where(np.indices((2, 4, 4, 4)).sum(0) % 2, -1.0, 1.0).astype(np.float32)
SHOWN: dict[str, tuple[Callable[[Any], Any], int]] = {
    "batch_norm": (lambda x: jn.batch_norm(x, jn.init_running_stats(4))[0], 1),
    "batch_renorm": (
        lambda x: jn.batch_renorm(x, jn.init_running_stats(4), rmax=1.0, dmax=0.0)[0],
        1,
    ),
    "layer_norm": (jn.layer_norm, 1),
    "rms_norm": (jn.rms_norm, 1),
    "pixel_norm": (jn.pixel_norm, 1),
    "instance_norm": (jn.instance_norm, 1),
    "group_norm": (lambda x: jn.group_norm(x, num_groups=2), 1),
    "evo_norm_s0": (lambda x: jn.evo_norm_s0(x, None, num_groups=2), 1),
    "filter_response_norm": (jn.filter_response_norm, 1),
    "qk_norm": (lambda x: jn.qk_norm(x, x)[1], 1),
    "weight_standardization": (jn.weight_standardization, 1),
    "l2_normalize": (jn.l2_normalize, 4),
    "scale_norm": (jn.scale_norm, 4),
    "weight_norm": (jn.weight_norm, 32),
}


def test_epsilon_is_seen_in_what_is_as_small() -> None:
    """Values with a mean square (or square length) of ε come out at 1/√2 of their normalized size."""
    epsilons = {name: FUNCTIONS[name]["epsilon"] for name in SHOWN}

    def run(signs: jax.Array) -> Any:
        return {
            name: f(signs * np.float32(math.sqrt(epsilons[name] / n)))
            for name, (f, n) in SHOWN.items()
        }

    for name, y in compiled(run, jnp.asarray(SIGNS)).items():
        expected = SIGNS / math.sqrt(2 * SHOWN[name][1])
        np.testing.assert_allclose(y, expected, rtol=1e-4, err_msg=name)
