"""Every error of the package, word for word: what must hold, what was given, what to do."""

import ast
import itertools
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx, tools
from tests import zoo_errors

pytestmark = pytest.mark.every_case

X = jnp.ones((6, 5, 4))
COMPLEX = X.astype(jnp.complex64)
STATS = jn.init_running_stats(4)
COMPLEX_STATS = jn.init_running_stats(4, jnp.complex64)
NAN = float("nan")
KEY = jax.random.key(0)
NESTED: Any = [[0]]


def train(x: Any = X, stats: Any = STATS, *affine: Any, **options: Any) -> Callable[[], Any]:
    """A deferred call of `batch_norm`."""
    return lambda: jn.batch_norm(x, stats, *affine, **options)


def synced(name: Any, groups: Any = None) -> Callable[[], Any]:
    """Layer norm over 6 devices along a mapped axis "batch"."""
    f = partial(jn.layer_norm, axis_name=name, axis_index_groups=groups)
    return lambda: jax.vmap(f, axis_name="batch")(X)


def evaluate(x: Any = X, stats: Any = STATS, *affine: Any, **options: Any) -> Callable[[], Any]:
    """A deferred call of `batch_norm_inference`."""
    return lambda: jn.batch_norm_inference(x, stats, *affine, **options)


def layer(x: Any = X, mask: Any = None, variables: Any = None, **fields: Any) -> Callable[[], Any]:
    """A training step of the Linen layer, with ``variables`` or else freshly initialized ones."""

    def call() -> Any:
        module = jnl.BatchNorm(False, **fields)
        if variables is None:
            return module.init(jax.random.key(0), x, mask=mask)
        return module.apply(variables, x, mask=mask, mutable=["batch_stats"])

    return call


def spectral(kernel: jax.Array) -> jn.SpectralState:
    """A state for ``kernel``."""
    return jn.init_spectral_norm(KEY, kernel)


def moments(*shape: int, dtype: Any = jnp.float32) -> jn.Moments:
    """Moments of the given shape."""
    return jn.Moments(jnp.zeros(shape, dtype), jnp.ones(shape), jnp.ones(shape))


def variables_of(features: int) -> dict[str, dict[str, jax.Array]]:
    """Variables with statistics of ``features`` features, but parameters of 4."""
    ones = jnp.ones(features)
    return {
        "params": {"scale": jnp.ones(4), "bias": jnp.ones(4)},
        "batch_stats": {"mean": ones, "var": ones},
    }


def wrong_shape(name: str, came: str, needed: str = "(4,)", axes: str = "(2,)") -> str:
    """The error for a parameter that does not have the shape of the features."""
    return (
        f"{name} must have the shape of the feature axes; got {name} of shape {came} for x of shape "
        f"(6, 5, 4) with feature_axes={axes}, which needs {needed}. Check feature_axes (axis, in a "
        f"module), or give {name} the shape {needed}."
    )


def wrong_mask(shape: str, x: str = "(6, 5, 4)", needed: str = "(6, 1, 1)") -> str:
    """The error for a mask that does not broadcast."""
    return (
        f"mask must broadcast to x; got mask of shape {shape} for x of shape {x}. Axes are aligned from "
        f"the last: a mask of the examples in x needs shape {needed}."
    )


def out_of_range(name: str, axis: int, came: str) -> str:
    """The error for an axis that x does not have."""
    return (
        f"{name} must lie in [-3, 2] for an array of rank 3; got {axis} in {name}={came}. Count all its "
        f"axes, including the first."
    )


def no_axes(name: str) -> str:
    """The error for a scalar, which does not say that its axes must lie in [0, -1]."""
    return (
        f"{name} must name axes of an array; got {name}=-1 for an array of rank 0, which has none. Give "
        f"it an axis, as in x[None]."
    )


def not_an_integer(name: str, came: str) -> str:
    """The error for an axis that is not an integer."""
    return (
        f"{name} must be an integer or a sequence of integers; got {came}. Give each axis by its number: "
        f"-1 is the last."
    )


def repeated(name: str, came: str, counted: str) -> str:
    """The error for an axis named twice."""
    return (
        f"{name} must name each axis once; got {name}={came}, which for an array of rank 3 is {counted}. "
        f"Remove the repeated axis."
    )


def no_stats(came: str) -> str:
    """The error for statistics of another type."""
    return (
        f"stats must be RunningStats(mean, var); got {came}. Start from "
        f"init_running_stats(feature_shape) and pass what the last step returned; convert a dict or a "
        f"tuple from a checkpoint with RunningStats(**d) or RunningStats(*t)."
    )


def float_mask(came: str) -> str:
    """The error for a mask of floats."""
    return (
        f"mask must be boolean or integer (True or nonzero includes an element); got {came}. Compare it "
        f"with a threshold, as in mask > 0.5: statistics include an element or exclude it."
    )


def bad_epsilon(came: str) -> str:
    """The error for a negative epsilon."""
    return (
        f"epsilon must be zero or positive; got epsilon={came}. It is added to the variance so that a "
        f"constant input divides by sqrt(epsilon): 1e-5 is usual."
    )


def no_flag(name: str, came: str, choices: str = "True or False") -> str:
    """The error for an invalid flag."""
    return f"{name} must be {choices}; got {came}. Convert other values with bool()."


def traced(value: Any) -> str:
    """How jax prints a ``value`` that is traced by jit."""
    printed: list[str] = []
    jax.jit(lambda a: printed.append(repr(a)))(value)
    return printed[0]


def bad_momentum(came: str) -> str:
    """The error for a momentum outside [0, 1]."""
    return (
        f"momentum must lie in [0, 1]; got momentum={came}. It is the weight of the old value: 0.99 "
        f"moves slowly, and PyTorch's 0.1 is 0.9 here."
    )


def bad_dtype(came: str) -> str:
    """The error for an integer result."""
    return (
        f"dtype must be a floating or complex type; got {came}. Normalized values are not integers: use "
        f"float32, or cast the result yourself."
    )


def other_moments(stats: str, came: str) -> str:
    """The error for moments of other features."""
    return (
        f"stats must have one mean for each feature of the moments; got stats.mean of shape {stats} for "
        f"moments of shape {came}. Reduce over all axes except the feature axes, and keep "
        f"the order of those."
    )


NO_COUNT = (
    "stats.count must be the number of batches so far for momentum=None, which averages all batches; got "
    "stats.count=None. Start from init_running_stats(feature_shape, cumulative=True)."
)
REAL_STATS = (
    "stats.mean must be complex for a complex input; got float32 for x of dtype complex64. Start from "
    "init_running_stats(feature_shape, dtype=jnp.complex64), or initialize a module with a complex x "
    "(Linen) or with param_dtype=jnp.complex64 (NNX)."
)
REAL_RESULT = (
    "dtype must be complex for a complex x, scale or bias; got float32 for complex64. "
    "Use complex64, or take the real part of the result yourself."
)
COMPLEX_MOMENTS = (
    "stats.mean must be complex for complex moments; got float32 for a mean of dtype complex64. Start from "
    "init_running_stats(feature_shape, dtype=jnp.complex64)."
)
BATCH_AS_FEATURE = (
    "The channel axes cannot include the leading dimension as this is assumed to be the batch axis. "
    "Got feature_axes=(0, 2) for x of shape (6, 5, 4); move the batch to axis 0."
)
NO_CHANNEL = (
    "The reduction axes must include the final dimension as this is assumed to be the feature axis. "
    "Got reduction_axes=1 with the channel axis 2; add it."
)
TWO_CHANNELS = (
    "feature_axes must be a single axis here, the channels; got feature_axes=(1, 2). Reshape the axes into "
    "one."
)
NOT_A_WINDOW = (
    "size must be a positive integer, the number of channels in the window; got 0. 5 is typical."
)
NEGATIVE_ENERGY = (
    "k must be finite and non-negative; got k=-5. x is divided by a power of k + alpha/size · Σ |x|², which "
    "must not be negative."
)
NO_MATRIX = (
    "kernel must have rank 2 or more to have a spectral norm; got shape (4,). Leave scales and biases "
    "unnormalized."
)
OTHER_KERNEL = (
    "state.u must have shape (1, outputs), here (1, 4); got (1, 5) for a kernel of shape (6, 5, 4). Start "
    "from init_spectral_norm(key, kernel)."
)
OTHER_KIND = (
    "state.u must be complex for a complex kernel, and real for a real one; got float32 for a kernel of "
    "complex64. Start from init_spectral_norm(key, kernel)."
)
EMPTY_KERNEL = "kernel must not be empty to have singular values; got shape (0, 4). Leave it out."
NO_STEPS = (
    "n_steps must be a positive integer, or None for the exact singular value; got 0. 1 is enough in "
    "training, where each step continues from the previous one."
)
NOT_A_MATRIX = (
    "Input is 3D but error_on_non_matrix is True. Got a parameter of shape (4, 2, 2); without that "
    "option it is reshaped to a matrix that keeps the last axis."
)
NO_FLAG = (
    "use_running_average must be True (evaluation) or False (training) in the module or in the call; got "
    "None in both. Call module.train() or module.eval(), or pass it in the call."
)
NO_UPDATE_FLAG = (
    "update_stats must be True (training) or False (evaluation); got None for it and for "
    "use_running_average, its opposite. Pass one of them."
)
NO_SUCH_NORM = (
    "norm must be one of batch, layer, rms, group, instance, local_response, none, act, batch_renorm, derf, "
    "dynamic_tanh, evo_b0, evo_b1, evo_b2, evo_s0, evo_s1, evo_s2, filter_response, frozen_batch, "
    "ghost_batch, global_response, iterative_whitening, mean_only_batch, pixel, scale, switchable, "
    "magnitude_preserving, scaled_weight_standardization, spectral, weight, weight_standardization; got "
    "'bach'. Did you mean 'batch'?"
)
BOTH_GROUPS = (
    "Either `num_groups` or `group_size` should be specified. If `group_size` is to be specified, pass "
    "`num_groups=None` as argument to override the default `num_groups` value of 32. Got num_groups=32, "
    "group_size=2."
)
GROUP_SIZE = "Number of channels (4) is not multiple of the group size (3). Choose a divisor of 4."
NUM_GROUPS = (
    "Number of groups (32) does not divide the number of channels (4). Choose a divisor of 4, or give "
    "group_size."
)
NOT_ONE_EPSILON = (
    "epsilon must be one real number; got None. The same number is added to the variance of every feature: "
    "1e-5 is usual."
)
NOT_ONE_MOMENTUM = (
    "momentum must be one real number or None; got '0.9'. It is the weight of the old value, the same for "
    "every feature: 0.99 is usual."
)
OTHER_COUNT = (
    "stats.count must have the shape of stats.mean; got (3,) for a mean of shape (4,). Start from "
    "init_running_stats(feature_shape)."
)
COMPLEX_STATS_FOR_REAL = (
    "stats.mean must be real for a real input; got complex64 for x of dtype float32. Start from "
    "init_running_stats(feature_shape), or make x complex."
)
UNBOUND = (
    "axis_name must name axes of vmap, pmap or shard_map around the call; got ['bacth'], but the axes bound "
    "here are: 'batch'. Use one of these. Under jit, with or without a mesh, statistics always cover the "
    "whole batch: leave axis_name out."
)
NO_PARTITION = (
    "axis_index_groups must contain each device of axis_name, 0 to 5, once; got [[0, 1, 2], "
    "[3, 4]]."
)
NO_AXIS_NAME = (
    "axis_index_groups must come with axis_name, whose devices it groups; got axis_index_groups=[[0]] and "
    "axis_name=None. Name the mapped axis, or leave out the groups."
)
OTHER_SHAPES = (
    "a and b must have means of the same shape; got (1, 5, 4) and (6, 1, 4). Reduce both over "
    "the same axes."
)
INTEGER_STATS = (
    "dtype of running statistics must be floating or complex; got int32. Use float32, whatever the dtype of "
    "the input."
)


def virtual(examples: int, name: Any = None, size: Any = 4, **options: Any) -> Callable[[], Any]:
    """Batch norm with virtual batches, for ``examples`` on each of 6 devices if there is a ``name``."""
    f = partial(jn.batch_norm, axis_name=name, virtual_batch_size=size, **options)
    x, stats = jnp.ones((6, examples, 4)), jn.init_running_stats(4)
    if name is None:
        return lambda: f(x[0], stats)
    return lambda: jax.vmap(f, in_axes=(0, None), axis_name="batch")(x, stats)


def no_virtual_batch(size: int, examples: int, devices: str = "") -> str:
    """The error for a size that neither divides a device's examples nor fits an equal share of devices."""
    return (
        f"virtual_batch_size must divide the {examples} examples of x or, with axis_name, be the number of "
        f"examples on equal groups of devices; got virtual_batch_size={size} for {examples} "
        f"examples{devices}. Pad a ragged batch, and mask the padding."
    )


ON_DEVICES = " on each of the devices of 'batch'"
NO_SIZE = (
    "virtual_batch_size must be a positive integer or None; got 0. It is the number of examples that "
    "share statistics: 32 is usual."
)
NO_EXAMPLES = (
    "virtual_batch_size counts examples along axis 0 of x, which must not be a feature axis; got "
    "feature_axes=(0,). Put the examples first."
)
TWO_GROUPINGS = (
    "virtual_batch_size must not be combined with axis_index_groups; got virtual_batch_size=4 and "
    "axis_index_groups=[[0, 1, 2], [3, 4, 5]]. Leave one of them out."
)
NO_REPLICAS = (
    "exactly one of axis and axis_name must be given; got axis=None and axis_name=None. "
    "For stacked statistics, as returned by pmap, pass axis=0."
)
VAR_ALONE = (
    "each var must have a mean of the same shape next to it; got bn/var of shape (3,) and no mean. Pass the "
    "running statistics as stored by the layers."
)
MEAN_ALONE = (
    "each mean must have a var next to it; got bn/mean without one. Other statistics, such as "
    "IterativeWhitening's, cannot be pooled afterwards: set axis_name in the layer, so that it keeps those "
    "of all replicas."
)
COUNTED_VALUES = (
    "replicas must have equal weights; got remainder of an InputNorm, whose replicas weigh as much as they "
    "have counted. Set axis_name in the layer, so that it keeps the statistics of all replicas, or combine "
    "Moments(mean, var, count) with jaxnorm.pool."
)
NO_STATISTICS = (
    "batch_stats must hold a mean and a var for at least one layer; got bn/scale. Pass "
    'variables["batch_stats"] from Linen, nnx.state(model, nnx.BatchStat), or RunningStats.'
)
NOT_TO_BE_SPLIT = (
    "batch must split equally over two or more devices: all leaves need the same first axis, a multiple of "
    "the number of devices; got first axes [(6,), (9,)] and number of devices 8. Pad and mask the batch; for "
    "more devices on a CPU, set jax_num_cpu_devices in jax.config first."
)

NO_ACTIVATION = (
    "activation must be None or one of relu, leaky_relu, silu, gelu; got 'tanh'. Apply any other activation "
    "to the result, in a separate pass."
)
COMPLEX_ACTIVATION = (
    "activation must be None for complex values; got 'relu' for a complex64 result. Apply the activation to "
    "the real and imaginary parts of the result yourself."
)
OTHER_RESIDUAL = (
    "residual must have the shape of x; got (6, 5, 1) for x of shape (6, 5, 4). It is added elementwise, "
    "before the activation: broadcast it or project it to that shape."
)
NOT_TO_BE_SAVED = (
    "save_as must be None, 'output' or a floating dtype of 16 bits or more; got 'input'. None saves x "
    "unchanged; jnp.bfloat16 halves the memory for a float32 x."
)
NO_INVERSE = (
    "save_as='output' requires an invertible activation, None or 'leaky_relu'; got 'relu'. Use "
    "'leaky_relu', or save_as=jnp.bfloat16."
)
COMPLEX_SAVED = (
    "save_as must be None for a complex x; got 'output' for x of complex64. Leave it out."
)
SAVED_IN_PARTS = (
    "save_as must be None with masks, residuals, device groups or virtual batches; got save_as='output' with "
    "mask and virtual_batch_size. Leave one of them out."
)
NO_SOURCE = (
    "source must be a state_dict, a .safetensors or .npz file, Linen variables, an NNX model, Haiku's "
    "(params, state), or an Equinox module or (module, state); got list. For a PyTorch model, pass "
    "model.state_dict()."
)
NO_LIKE = (
    "like must be Linen variables (or their shapes, from jax.eval_shape), an NNX model, or a PyTorch "
    "state_dict; got str. Pass an example of the result; it is not modified."
)
NO_STATE_DICT = (
    "a state_dict must map names to arrays; got dict for 'model'. Pass the part of a checkpoint that is one, "
    'as in checkpoint["state_dict"]; Linen variables need their collections, as in '
    '{"params": params}.'
)
PICKLE = (
    "a file must be .safetensors or .npz; got a.pth, a pickle, which can execute arbitrary code when it is "
    "loaded. If you trust it, pass torch.load(path, weights_only=True), or save it once with "
    "safetensors.torch.save_file."
)
OTHER_FILE = (
    "a file must be .safetensors or .npz, with arrays under PyTorch's names; got a.h5. Load it yourself, and "
    "pass its contents."
)


def damaged(size: int, why: str) -> str:
    """The error for a truncated safetensors file."""
    return (
        f"a.safetensors must be a complete safetensors file; got {size} bytes that cannot be read ({why}). "
        f"Download or save it again."
    )


CUT = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
TWICE = CUT[:-1] + b"," + CUT[1:].replace(b'"a"', b'"b"')
NO_SUCH_LAYER = (
    "names must name layers of like; got 'head', but like has '', 'fc'. Use these names."
)
NO_TRANSPOSED = (
    "transposed must name layers of like; got 'head', but like has 'fc'. Use these names."
)
MISMATCH = """every array in source must match one in like, and vice versa; got
  like's params/fc/kernel (6, 2): got fc.weight (5, 6), which becomes (6, 5)
  source's fc.bias (2,): nothing in like
  source's 'head' with weight (3,): nothing in like
If names differ, pass names={path in like: name in source}; remove arrays from source that like does \
not need. \
For transposed convolutions and layers after a flatten, see the arguments transposed and channels_last; for \
layers in a loop, stacked; for layers that are new in like, keep."""
NOT_BY_SHAPE = """every array in source must match one in like, and vice versa; got
  like's 'fc' with kernel (6, 2): no 'fc' in source
  source's 'dense' with weight (2, 6): nothing in like
With keep, layers are paired by name only. """ + MISMATCH[MISMATCH.index("If names") :]
OTHER_INPUTS = (
    "channels_last must give the sizes (C, H, W) of the inputs that PyTorch flattens; got (3, 2, 2), with 12 "
    "elements, for a layer with 6 inputs. Use the sizes of the array that is flattened."
)
STATELESS = (
    "an Equinox module with batch norm must come with its state; got the module alone. Pass "
    "(module, state), as returned by equinox.nn.make_with_state."
)
NO_TORCH_NORM = (
    "module must be one of BatchNorm, SyncBatchNorm, InstanceNorm, LayerNorm, RMSNorm, GroupNorm, "
    "LocalResponseNorm of torch.nn, or compute the same; got list. For a larger model, pass each "
    "norm in model.modules()."
)
ACTIVATED = (
    "the jaxnorm class must compute all that module computes; got GroupNorm with Tanh, which it does not "
    "apply. Apply it after the norm in the model, and pass a plain GroupNorm of the same options here."
)
DENSE: Any = {"params": {"fc": {"kernel": np.zeros((6, 2), np.float32)}}}

WITH_NEW: Any = {"params": {**DENSE["params"], "new": {"bias": np.zeros(2, np.float32)}}}


def group_norm_act() -> Any:
    """A group norm with an activation, like timm's."""
    act = type("Tanh", (), {})()
    kind = type("GroupNorm", (SimpleNamespace,), {})
    return kind(num_groups=2, eps=1e-5, weight=None, bias=None, act=act)


def converted(source: Any, like: Any = DENSE, **arguments: Any) -> Callable[[], Any]:
    """A deferred conversion."""
    return lambda: tools.convert(source, like=like, **arguments)


def from_file(raw: bytes) -> Callable[[], Any]:
    """A conversion from a file with these bytes."""

    def call() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.safetensors"
            path.write_bytes(raw)
            return tools.convert(path, like=DENSE)

    return call


def equinox_batch_norm() -> Any:
    """An object that looks like a batch norm of Equinox."""
    module = type("Module", (), {"__module__": "equinox"})
    norm = type("BatchNorm", (module,), {"__module__": "equinox.nn", "weight": None, "bias": None})
    return norm()


NORM_ALONE: Any = {
    "params": {"scale": np.ones(4, np.float32), "bias": np.ones(4, np.float32)},
    "batch_stats": {"mean": np.ones(4, np.float32), "var": np.ones(4, np.float32)},
}


class Model(nn.Module):
    """Two layers, for the tools."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies a dense layer and a batch norm."""
        return jnl.BatchNorm(True, name="bn")(nn.Dense(3, name="dense")(x))


ROWS = jnp.ones((6, 4))
EPSILONS = jnp.ones(2)
VARIABLES = Model().init(KEY, ROWS)
NNX_MODEL = jnx.BatchNorm(4, rngs=nnx.Rngs(0))
FOLDABLE = nnx.Sequential(
    nnx.Linear(4, 4, rngs=nnx.Rngs(0)), jnx.BatchNorm(4, use_running_average=True, rngs=nnx.Rngs(0))
)


def unlike_before(counter: Iterator[int]) -> Callable[[Any, Any], Any]:
    """Calls a model, and returns another number each time."""
    return lambda model, batch: 0 * model(batch) + next(counter)


def called_with_other_layers() -> Any:
    """Calls what a tool returned while a converter has replaced Flax's layers."""
    frozen = tools.freeze(Model(), variables=VARIABLES)
    with mock.patch.object(nn.Dense, "__call__", lambda self, x: x):
        return frozen.apply(VARIABLES, ROWS)


def recalibrated(batches: Any = (ROWS,), **options: Any) -> Callable[[], Any]:
    """A deferred call of `recalibrate` for the model."""
    return lambda: tools.recalibrate(Model(), batches, **{"variables": VARIABLES, **options})


def swapped(norm: Any, **fields: Any) -> Callable[[], Any]:
    """A deferred call of `swap` for an NNX batch norm with these fields."""
    return lambda: tools.swap(jnx.BatchNorm(4, rngs=nnx.Rngs(0), **fields), norm)


def with_untracked() -> nnx.Module:
    """Two batch norms; the second keeps no running statistics."""
    options: tuple[dict[str, Any], ...] = ({}, {"track_running_stats": False})
    return nnx.Sequential(*(jnx.BatchNorm(4, rngs=nnx.Rngs(0), **given) for given in options))


def residual_of_swapped() -> Any:
    """Calls the layer norm that replaces a batch norm with the batch norm's residual."""
    norm: Any = jnl.BatchNorm(use_running_average=True)
    model, _ = tools.swap(norm, "layer", variables=norm.init(KEY, ROWS))
    return model.init(KEY, ROWS, residual=ROWS)


class WithoutMask(nn.Module):
    """A user's norm that takes no mask."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns ``x``."""
        return x


def mask_of_swapped() -> Any:
    """Calls a norm without masks that replaces a batch norm with a mask for the batch norm."""
    norm: Any = jnl.BatchNorm(use_running_average=True)
    model, _ = tools.swap(norm, WithoutMask, variables=norm.init(KEY, ROWS))
    return model.init(KEY, ROWS, mask=ROWS > 0)


class NormRelu(jnx.BatchNorm):
    """A user's layer that does more than its base class."""

    def __call__(self, x: jax.Array, **options: Any) -> jax.Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Never returns negative values."""
        return nnx.relu(super().__call__(x, **options))


def accumulated(batch: Any, micro_batches: int) -> Callable[[], Any]:
    """A deferred call of `accumulate`."""
    return lambda: tools.accumulate(
        lambda m, x: m(x).mean(), Model(), batch, micro_batches=micro_batches, variables=VARIABLES
    )


def call(model: Any, x: Any) -> Any:
    """Serves as a loss and as a way to run the model."""
    return model(x).mean()


def no_model(came: str) -> str:
    """The error for an argument that is not a model."""
    return (
        f"model must be a Linen module or an NNX model; got {came}. Pass the module itself, not its "
        f"variables or its apply function."
    )


def no_variables(came: str) -> str:
    """The error for variables of another module."""
    return (
        f"variables must be those of the Linen module, by collection; got {came}. Pass "
        f'variables={{"params": ..., "batch_stats": ...}}, as returned by init.'
    )


def no_layer(kind: str) -> str:
    """The error for a model without such a layer."""
    return (
        f"there must be at least one {kind}; got a model without any. Linen layers are found through the "
        f"variables: pass the collections params and batch_stats as returned by init or training."
    )


def not_meant(kind: str, has: str = "bn") -> str:
    """The error for a pattern without a match."""
    return (
        f"where must match at least one {kind} in the model; got where='nb', but the model has: {has}. Use a "
        f"pattern such as 'stem/*', or omit where to select all."
    )


def no_parts(number: int, examples: str) -> str:
    """The error for a number of parts that does not divide the examples."""
    return (
        f"micro_batches must divide the number of examples, which is the size of axis 0 of every leaf of "
        f"batch; got micro_batches={number} and {examples} examples. Drop examples, or pad the batch and "
        f"mask the padding."
    )


def no_norm(system: str, came: str) -> str:
    """The error for an argument that is not a norm of activations."""
    return (
        f"norm must be the name or the class of a norm of activations, in flax.{system} like the model; got "
        f"{came}. Pass its arguments as options, as in norm=GroupNorm, num_groups=8."
    )


def one_batch(came: str) -> str:
    """The error for a single batch instead of several."""
    return (
        f"batches must be an iterable of batches; got one {came}. Put it in a list or, if its first axis is "
        f"over batches, pass list(batches)."
    )


NO_METHOD = "method must be one of population, precise_bn, update_bn; got 'precise'."
ONLY_ONCE = (
    "batches must be iterable several times with layer_by_layer=True; got tuple_iterator, which is exhausted "
    "after one pass. Pass a list, or an object that can be iterated again."
)
NO_BATCH = (
    "batches must hold at least one batch; got none. An iterator that was used before is empty: pass a "
    "list, or create the iterator again."
)
NOT_FINITE = (
    "every batch must give finite statistics; got NaN or infinity from batch 1 on (counting from 0), in "
    "bn. Look for the cause in the data and the weights with tools.examine, or mask it."
)
NOTHING_COUNTS = (
    "batches must have unmasked elements for every layer; got none for bn (number of batches: 1). Check the "
    "mask."
)
CALLS_NONE = (
    "the model must call at least one norm with running statistics; got a model that calls none. "
    "Check that run calls the whole model."
)
STATS_MISSING = (
    "variables must hold running statistics for every norm; got no mean and var for 'bn' in the "
    "collection batch_stats. Pass the variables as returned by init or training, including batch_stats."
)
OTHER_FEATURES = (
    "running statistics must have the shape of their layer's features; got a mean of shape (2,) for "
    "features of shape (3,) at 'bn'. Pass the variables of this model, and batches like those it is trained "
    "on."
)


class Asking(nn.Module):
    """A model that takes more than a batch."""

    @nn.compact
    def __call__(self, x, train, labels):
        """Never gets that far."""


VARIABLES_OF_NNX = (
    "variables belong to a Linen module; got them with an NNX model, BatchNorm, which holds its own. "
    "Leave them out."
)
RNGS_OF_NNX = VARIABLES_OF_NNX.replace("variables", "rngs")
ACTIVATION_LOST = (
    "the replacement for a batch norm must support all its options; got '' with activation='relu', which "
    "LayerNorm does not support. Apply it after the norm in the model, or exclude this layer with where."
)
RESIDUAL_LOST = (
    "the replacement for a batch norm must take all its arguments; got a residual at '', which LayerNorm "
    "does not take. Add it after the norm in the model, or exclude this layer with where."
)
MASK_LOST = (
    "the replacement for a batch norm must take all its arguments; got a mask at '', which WithoutMask "
    "does not take. Use a norm that takes it, or exclude this layer with where."
)
MORE_THAN_A_NORM = (
    "tools.swap supports NNX layers that compute a batch norm and nothing else; got NormRelu at '', but it "
    "overrides __call__, and what that adds would be lost. Exclude such layers with where if the tool has "
    "it, or replace them in the model."
)
NO_HASH = (
    "options for a Linen norm must have a hash, as all fields of Linen modules; got epsilon=Array([1., 1.], "
    "dtype=float32). Pass numbers, strings or tuples."
)
NOTHING_TO_FREEZE = (
    "FrozenBatchNorm needs the running statistics of the batch norm; got 'layers/1' with "
    "track_running_stats=False. Exclude this layer with where."
)
LAST_AXIS_ONLY = (
    "GroupNorm takes the last axis as the feature axis; got '' with axis=1. Move the features to the last "
    "axis in the model, or exclude this layer with where."
)
OTHER_TREE = (
    "old and new must be trees of the same structure and shapes; got ['a'] of shape (4,) in old and of "
    "shape none in new. Pass the same state before and after the step."
)
OTHER_LEAF = (
    "old and new must be trees of the same structure and shapes; got a leaf of shape (4,) in old and of "
    "shape (1,) in new. Pass the same state before and after the step."
)

ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "no group of a gate": (
        lambda: jn.gated_rms_norm(jnp.ones((2, 8)), jnp.ones((2, 8)), num_groups=0),
        "num_groups must divide the number of features; got 0 groups of 8 features. Choose a divisor of 8.",
    ),
    "None of a gate": (
        lambda: jn.gated_rms_norm(jnp.ones((2, 8)), jnp.ones((2, 8)), num_groups=cast(Any, None)),
        "num_groups must be an integer; got None. See help(jaxnorm.gated_rms_norm).",
    ),
    "groups of a gate": (
        lambda: jn.gated_rms_norm(jnp.ones((2, 8)), jnp.ones((2, 8)), num_groups=3),
        "num_groups must divide the number of features; got 3 groups of 8 features. Choose a divisor of 8.",
    ),
    "gate": (
        lambda: jn.gated_rms_norm(jnp.ones((2, 3, 4)), jnp.ones((3, 4))),
        "gate must have the rank of x, and sizes of 1 or those of x; got shape (3, 4) for x of shape (2, 3, "
        "4). Project it to the features of x.",
    ),
    # shapes of parameters and statistics
    "scale": (train(X, STATS, jnp.ones(5)), wrong_shape("scale", "(5,)")),
    "scale, scalar": (train(X, STATS, 1.0), wrong_shape("scale", "()")),
    "scale, broadcast": (train(X, STATS, X[:1, :1]), wrong_shape("scale", "(1, 1, 4)")),
    "bias": (train(X, STATS, None, jnp.ones(5)), wrong_shape("bias", "(5,)")),
    "bias, evaluating": (evaluate(X, STATS, None, jnp.ones(5)), wrong_shape("bias", "(5,)")),
    "bias, axis left": (
        train(X, jn.init_running_stats(5), None, jnp.ones(4), feature_axes=1),
        wrong_shape("bias", "(4,)", "(5,)", "(1,)"),
    ),
    "scale, features": (
        train(X, jn.init_running_stats((5, 4)), jnp.ones((4, 5)), feature_axes=(1, 2)),
        wrong_shape("scale", "(4, 5)", "(5, 4)", "(1, 2)"),
    ),
    "stats": (train(X, jn.init_running_stats(5)), wrong_shape("stats.mean", "(5,)")),
    "stats, evaluating": (evaluate(X, jn.init_running_stats(5)), wrong_shape("stats.mean", "(5,)")),
    "stats, var": (
        train(X, jn.RunningStats(jnp.zeros(4), jnp.ones(5))),
        wrong_shape("stats.var", "(5,)"),
    ),
    "stats, layer": (layer(variables=variables_of(5)), wrong_shape("stats.mean", "(5,)")),
    # type of statistics
    "stats, tuple": (train(X, (jnp.zeros(4), jnp.ones(4))), no_stats("tuple")),
    "stats, dict": (evaluate(X, {"mean": jnp.zeros(4)}), no_stats("dict")),
    "stats, None": (train(X, None), no_stats("NoneType")),
    "stats, moments": (train(X, jn.moments(X, (0, 1))), no_stats("Moments")),
    "stats, real": (train(COMPLEX), REAL_STATS),
    "stats, real, evaluating": (evaluate(COMPLEX), REAL_STATS),
    "stats, complex": (train(X, COMPLEX_STATS), COMPLEX_STATS_FOR_REAL),
    "stats, integer": (lambda: jn.init_running_stats(4, jnp.int32), INTEGER_STATS),
    "stats, integers": (
        train(X, jn.RunningStats(jnp.zeros(4, int), jnp.ones(4, int))),
        INTEGER_STATS,
    ),
    # mask
    "mask": (train(mask=jnp.ones(6, bool)), wrong_mask("(6,)")),
    "mask, moments": (lambda: jn.moments(X, 0, mask=jnp.ones((6, 5), bool)), wrong_mask("(6, 5)")),
    "mask, dims": (train(mask=jnp.ones((1, 6, 5, 4), bool)), wrong_mask("(1, 6, 5, 4)")),
    "mask, larger than x": (
        train(X[:1], mask=jnp.ones((6, 5, 4), bool)),
        wrong_mask("(6, 5, 4)", "(1, 5, 4)", "(1, 1, 1)"),
    ),
    "mask, layer": (layer(mask=jnp.ones((5, 6, 1), bool)), wrong_mask("(5, 6, 1)")),
    "mask, float": (train(mask=jnp.ones((6, 1, 1))), float_mask("float32")),
    "mask, float, layer": (layer(mask=jnp.ones((6, 1, 1), jnp.bfloat16)), float_mask("bfloat16")),
    "mask, complex": (lambda: jn.moments(X, 0, mask=COMPLEX), float_mask("complex64")),
    # axes
    "axis": (train(feature_axes=3), out_of_range("feature_axes", 3, "3")),
    "axis, negative": (evaluate(feature_axes=(1, -4)), out_of_range("feature_axes", -4, "(1, -4)")),
    "axis, layer": (layer(axis=7), out_of_range("axis", 7, "7")),
    "axis, moments": (lambda: jn.moments(X, 3), out_of_range("reduction_axes", 3, "3")),
    "axis, pool": (lambda: jn.pool(jn.moments(X, 0), 3), out_of_range("axes", 3, "3")),
    "axis, twice": (train(feature_axes=(1, -2)), repeated("feature_axes", "(1, -2)", "(1, 1)")),
    "axis, twice, layer": (layer(axis=(2, 0, -1)), repeated("axis", "(2, 0, -1)", "(0, 2, 2)")),
    "axis, twice, moments": (
        lambda: jn.moments(X, (0, 0)),
        repeated("reduction_axes", "(0, 0)", "(0, 0)"),
    ),
    "axis, float": (train(feature_axes=1.0), not_an_integer("feature_axes", "1.0")),
    "axis, None": (train(feature_axes=None), not_an_integer("feature_axes", "None")),
    "axis, name": (layer(axis="channels"), not_an_integer("axis", "'channels'")),
    "axis, nested": (lambda: jn.pool(moments(4), NESTED), not_an_integer("axes", "[[0]]")),
    "axis, scalar": (train(X[0, 0, 0], jn.init_running_stats(())), no_axes("feature_axes")),
    "axis, scalar, layer": (layer(X[0, 0, 0]), no_axes("axis")),
    # epsilon
    "epsilon": (train(epsilon=-1e-5), bad_epsilon("-1e-05")),
    "epsilon, NaN": (train(epsilon=NAN), bad_epsilon("nan")),
    "epsilon, NumPy": (train(epsilon=np.float32(-1)), bad_epsilon("-1.0")),
    "epsilon, None": (train(epsilon=None), NOT_ONE_EPSILON),
    "epsilon, evaluating": (evaluate(epsilon=-1), bad_epsilon("-1")),
    "epsilon, layer": (layer(epsilon=-1.0), bad_epsilon("-1.0")),
    "epsilon, array": (train(epsilon=np.array(-1e3)), bad_epsilon("-1000.0")),
    # flags
    "flag": (train(unbiased="abc"), no_flag("unbiased", "'abc'")),
    "flag, traced": (
        lambda: jax.jit(lambda unbiased: train(unbiased=unbiased)())(True),
        f"unbiased must be True or False; got {traced(True)}. It decides what is compiled, so it cannot be "
        f"traced: under jit, name it in static_argnames.",
    ),
    "flag, layer": (layer(use_bias=1), no_flag("use_bias", "1")),
    "flag, call": (
        lambda: jnl.LayerNorm(use_scale=None).init(KEY, X),  # pyright: ignore[reportArgumentType]
        no_flag("use_scale", "None"),
    ),
    "flag, of a mode": (
        lambda: jnl.BatchNorm().init(KEY, X, use_running_average=0),  # pyright: ignore[reportArgumentType]
        no_flag("use_running_average", "0", "True, False or None"),
    ),
    # momentum
    "momentum": (train(momentum=1.5), bad_momentum("1.5")),
    "momentum, negative": (train(momentum=-0.1), bad_momentum("-0.1")),
    "momentum, NaN": (train(momentum=NAN), bad_momentum("nan")),
    "momentum, NumPy": (train(momentum=np.float32(2)), bad_momentum("2.0")),
    "momentum, layer": (layer(momentum=10), bad_momentum("10")),
    "momentum, None": (train(momentum=None), NO_COUNT),
    "momentum, text": (train(momentum="0.9"), NOT_ONE_MOMENTUM),
    "momentum, count": (train(X, STATS._replace(count=jnp.zeros(3, int))), OTHER_COUNT),
    "momentum, dict": (
        lambda: jn.update_running_stats({}, jn.moments(X, 0)),  # pyright: ignore[reportArgumentType]
        no_stats("dict"),
    ),
    "momentum, update": (
        lambda: jn.update_running_stats(STATS, jn.moments(X, (0, 1)), momentum=2.0),
        bad_momentum("2.0"),
    ),
    # devices
    "axis name": (synced("bacth"), UNBOUND),
    "axis name, one of two": (synced(("batch", "bacth")), UNBOUND),
    "axis name, under jit": (
        train(axis_name="bacth"),
        UNBOUND.replace("'batch'.", "none."),
    ),
    "axis groups": (synced("batch", [[0, 1, 2], [3, 4]]), NO_PARTITION),
    # dtypes
    "dtype": (train(dtype=jnp.int32), bad_dtype("int32")),
    "dtype, bool": (evaluate(dtype=bool), bad_dtype("bool")),
    "dtype, layer": (layer(dtype=jnp.int8), bad_dtype("int8")),
    "dtype, real": (train(COMPLEX, COMPLEX_STATS, dtype=jnp.float32), REAL_RESULT),
    "dtype, real, layer": (layer(COMPLEX, dtype=jnp.float32), REAL_RESULT),
    # other norms
    "instance": (lambda: jn.instance_norm(X, feature_axes=(0, 2)), BATCH_AS_FEATURE),
    "group, axes": (lambda: jn.group_norm(X, num_groups=2, reduction_axes=1), NO_CHANNEL),
    "group, features": (lambda: jn.group_norm(X, feature_axes=(1, 2)), TWO_CHANNELS),
    "group, both": (lambda: jn.group_norm(X, group_size=2), BOTH_GROUPS),
    "group, size": (lambda: jn.group_norm(X, num_groups=None, group_size=3), GROUP_SIZE),
    "group, number": (lambda: jn.group_norm(X), NUM_GROUPS),
    "tracked": (
        lambda: jn.tracked_instance_norm(X, jn.init_running_stats((6, 4)), feature_axes=(0, 2)),
        BATCH_AS_FEATURE,
    ),
    "window": (lambda: jn.local_response_norm(X, size=0), NOT_A_WINDOW),
    "window, k": (lambda: jn.local_response_norm(X, size=3, k=-5), NEGATIVE_ENERGY),
    "window, axes": (
        lambda: jn.local_response_norm(X, size=3, feature_axes=(1, 2)),
        TWO_CHANNELS,
    ),
    "spectral, rank": (lambda: jn.init_spectral_norm(KEY, jnp.ones(4)), NO_MATRIX),
    "spectral, state": (lambda: jn.spectral_norm(X, spectral(X[0].T)), OTHER_KERNEL),
    "spectral, steps": (lambda: jn.spectral_norm(X, spectral(X), n_steps=0), NO_STEPS),
    "spectral, kind": (lambda: jn.spectral_norm(COMPLEX, spectral(X)), OTHER_KIND),
    "spectral, empty": (
        lambda: jn.spectral_norm(X[0, :0], spectral(X), n_steps=None),
        EMPTY_KERNEL,
    ),
    "spectral, 3D": (
        lambda: jnl.SpectralNorm(nn.DenseGeneral((2, 2)), error_on_non_matrix=True).init(
            KEY, X, update_stats=False
        ),
        NOT_A_MATRIX,
    ),
    "spectral, 3D, NNX": (
        lambda: jnx.SpectralNorm(
            nnx.LinearGeneral(4, (2, 2), rngs=nnx.Rngs(0)),
            error_on_non_matrix=True,
            rngs=nnx.Rngs(0),
        ),
        NOT_A_MATRIX,
    ),
    "spectral, flag": (
        lambda: jnl.SpectralNorm(nn.Dense(4)).init(KEY, X),
        NO_UPDATE_FLAG,
    ),
    "flag, NNX": (
        lambda: jnx.BatchNorm(4, use_running_average=None, rngs=nnx.Rngs(0))(X),
        NO_FLAG,
    ),
    "groups, NNX": (lambda: jnx.GroupNorm(4, rngs=nnx.Rngs(0)), NUM_GROUPS),
    "gains without rngs, NNX": (
        lambda: jnx.WeightStandardization(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), use_gain=True),
        "rngs must be given with use_gain=True; got None. Pass rngs=nnx.Rngs(0).",
    ),
    "wrapped class": (
        lambda: jnl.WeightNorm(cast(Any, int)).init(KEY, X),
        "layer_instance must be a Linen module; got <class 'int'>. Construct the layer first.",
    ),
    "wrapped class, NNX": (
        lambda: jnx.WeightNorm(cast(Any, int), rngs=nnx.Rngs(0)),
        "layer_instance must be an NNX module; got <class 'int'>. Construct the layer first.",
    ),
    "wrapper without effect": (
        lambda: jnl.WeightNorm(nn.Dense(2), variable_filter={"weight"}).init(KEY, X),
        "the layer must have a parameter that this wrapper changes; got a layer whose parameters are "
        "layer_instance/bias, layer_instance/kernel. Check variable_filter, or do not wrap the layer.",
    ),
    "norm": (lambda: jnl.get_norm("bach"), NO_SUCH_NORM),
    "norm, NNX": (lambda: jnx.get_norm("bach"), NO_SUCH_NORM),
    "weight, scale": (
        lambda: jn.weight_norm(X, jnp.ones(5)),
        wrong_shape("scale", "(5,)"),
    ),
    "l2, axes": (
        lambda: jn.l2_normalize(X, reduction_axes=3),
        out_of_range("reduction_axes", 3, "3"),
    ),
    "standardization, axes": (
        lambda: jn.weight_standardization(X, feature_axes=3),
        out_of_range("feature_axes", 3, "3"),
    ),
    "layer, scale": (lambda: jn.layer_norm(X, jnp.ones(5)), wrong_shape("scale", "(5,)")),
    "rms, mask": (lambda: jn.rms_norm(X, mask=jnp.ones(6, bool)), wrong_mask("(6,)")),
    # devices
    "groups": (train(axis_index_groups=NESTED), NO_AXIS_NAME),
    "virtual, ragged": (virtual(6), no_virtual_batch(4, 6)),
    "virtual, no devices": (virtual(2), no_virtual_batch(4, 2)),
    "virtual, devices": (virtual(1, "batch"), no_virtual_batch(4, 1, ON_DEVICES)),
    "virtual, name": (virtual(2, "bacth"), UNBOUND),
    "virtual, zero": (virtual(8, size=0), NO_SIZE),
    "virtual, no examples": (virtual(4, feature_axes=0), NO_EXAMPLES),
    "virtual, groups": (
        virtual(2, "batch", axis_index_groups=[[0, 1, 2], [3, 4, 5]]),
        TWO_GROUPINGS,
    ),
    # tools
    "replicas": (lambda: tools.pool_replicas({}), NO_REPLICAS),
    "replicas, var": (
        lambda: tools.pool_replicas({"bn": {"var": jnp.ones(3)}}, axis=0),
        VAR_ALONE,
    ),
    "replicas, mean": (
        lambda: tools.pool_replicas({"bn": {"mean": jnp.ones(3)}}, axis=0),
        MEAN_ALONE,
    ),
    "replicas, counted": (
        lambda: tools.pool_replicas(jn.init_input_norm(3), axis_name="r"),
        COUNTED_VALUES,
    ),
    "replicas, none": (
        lambda: tools.pool_replicas({"bn": {"scale": jnp.ones(3)}}, axis=0),
        NO_STATISTICS,
    ),
    "parity": (
        lambda: tools.assert_parity(lambda p, b, a: (b, p), {}, [X, jnp.ones(9)]),
        NOT_TO_BE_SPLIT,
    ),
    "convert, source": (converted([]), NO_SOURCE),
    "convert, like": (converted({}, "variables"), NO_LIKE),
    "convert, nested": (converted({"model": {}}), NO_STATE_DICT),
    "convert, pickle": (converted("a.pth"), PICKLE),
    "convert, other file": (converted("a.h5"), OTHER_FILE),
    "convert, no header": (
        from_file(b"{}"),
        damaged(2, "Expecting value: line 1 column 1 (char 0)"),
    ),
    "convert, cut": (
        from_file(len(CUT).to_bytes(8, "little") + CUT),
        damaged(62, "the size of an array does not match its shape"),
    ),
    "convert, overlapping": (
        from_file(len(TWICE).to_bytes(8, "little") + TWICE + bytes(8)),
        damaged(123, "an array starts at byte 0, but the one before ends at 8"),
    ),
    "convert, one name": (
        from_file(len(TWICE).to_bytes(8, "little") + TWICE.replace(b'"b"', b'"a"') + bytes(16)),
        damaged(131, "'a' occurs twice"),
    ),
    "convert, more": (
        from_file(len(CUT).to_bytes(8, "little") + CUT + bytes(9)),
        damaged(71, "there are 9 bytes of data, but the arrays end at 8"),
    ),
    "convert, names": (converted({}, names={"head": "fc"}), NO_SUCH_LAYER),
    "convert, transposed": (converted({}, transposed=["head"]), NO_TRANSPOSED),
    "convert, mismatch": (
        converted(
            {
                "fc.weight": np.zeros((5, 6)),
                "fc.bias": np.zeros(2),
                "head.weight": np.zeros(3),
            }
        ),
        MISMATCH,
    ),
    "convert, channels": (
        converted({"fc.weight": np.zeros((2, 6))}, channels_last={"fc": (3, 2, 2)}),
        OTHER_INPUTS,
    ),
    "convert, equinox": (converted(equinox_batch_norm()), STATELESS),
    "convert, keep": (
        converted({"fc.weight": np.zeros((2, 6))}, keep="head/*"),
        "keep must match at least one layer of like; got 'head/*', but like has fc. Use a pattern such as "
        "'head/*'.",
    ),
    "convert, keep by name": (
        converted({"dense.weight": np.zeros((2, 6))}, WITH_NEW, keep="new"),
        NOT_BY_SHAPE,
    ),
    "convert, keep shapes": (
        converted({"fc.weight": np.zeros((2, 6))}, jax.eval_shape(lambda: DENSE), keep="fc"),
        "like must hold the values of layers to keep; got only the shape of params/fc/kernel. Pass variables "
        "from init, not from jax.eval_shape.",
    ),
    "convert, stacked": (
        converted({"fc.weight": np.zeros((2, 6))}, stacked=["blocks"]),
        "stacked must name layers of like or source; got 'blocks', but like or source has '', 'fc'. Use "
        "these names.",
    ),
    "torch options": (lambda: tools.torch_options([]), NO_TORCH_NORM),
    "torch options, activation": (lambda: tools.torch_options(group_norm_act()), ACTIVATED),
    # moments
    "combine": (lambda: jn.combine(jn.moments(X, 0), jn.moments(X, 1)), OTHER_SHAPES),
    "update, size": (
        lambda: jn.update_running_stats(STATS, jn.moments(X, 0)),
        other_moments("(4,)", "(1, 5, 4)"),
    ),
    "update, complex": (
        lambda: jn.update_running_stats(STATS, moments(1, 1, 4, dtype=jnp.complex64)),
        COMPLEX_MOMENTS,
    ),
    "update, order": (
        lambda: jn.update_running_stats(jn.init_running_stats((4, 5)), jn.moments(X, 0)),
        other_moments("(4, 5)", "(1, 5, 4)"),
    ),
    "activation": (train(activation="tanh"), NO_ACTIVATION),
    "activation in evaluation": (evaluate(activation="tanh"), NO_ACTIVATION),
    "activation of complex values": (
        train(COMPLEX, COMPLEX_STATS, activation="relu"),
        COMPLEX_ACTIVATION,
    ),
    "residual": (train(activation="relu", residual=X[..., :1]), OTHER_RESIDUAL),
    "residual in evaluation": (evaluate(residual=X[..., :1]), OTHER_RESIDUAL),
    "save_as": (train(save_as="input"), NOT_TO_BE_SAVED),
    "save_as, not invertible": (train(save_as="output", activation="relu"), NO_INVERSE),
    "save_as, float8": (
        train(save_as=jnp.float8_e4m3fn),
        NOT_TO_BE_SAVED.replace("'input'", repr(jnp.float8_e4m3fn)),
    ),
    "save_as, complex": (train(COMPLEX, COMPLEX_STATS, save_as="output"), COMPLEX_SAVED),
    "activation, complex scale": (
        train(X, STATS, jnp.ones(4, jnp.complex64), activation="relu"),
        COMPLEX_ACTIVATION,
    ),
    "save_as, in parts": (
        train(save_as="output", mask=X > 0, virtual_batch_size=2),
        SAVED_IN_PARTS,
    ),
    "fold": (
        lambda: tools.fold(jnl.BatchNorm(True, name="norm"), X, variables=NORM_ALONE),
        "every batch norm must fold exactly into an adjacent layer; got 1 of 1 that cannot: '' because it "
        "folds into neither the layer before (its input comes from the batch) nor the layer after (its "
        "output must go to one layer only, but goes to the output of the model). Change the model there, or "
        "keep these batch norms with partial=True or a where that excludes them.",
    ),
    "data, a folded model": (
        lambda: tools.fold(FOLDABLE, ROWS, run=unlike_before(itertools.count())),
        "the folded model must compute what the model computes; the outputs differ by 1 in values of up to "
        "2, more than rounding. Check that run returns the same for the same batch, or exclude batch norms "
        "with where.",
    ),
    "data, replaced calls": (
        lambda: called_with_other_layers(),
        "a module that a tool returned must intercept the calls of Flax's layers; got Dense with a __call__ "
        "that is not Flax's, as within jax2onnx. Trace the module first, as in "
        "jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(f)(x)), and convert the result.",
    ),
    # the tools
    "recalibrate, method": (recalibrated(method="precise"), NO_METHOD),
    "recalibrate, one array": (recalibrated(np.ones((6, 4))), one_batch("ndarray")),
    "recalibrate, one dictionary": (recalibrated({"x": ROWS}), one_batch("dict")),
    "recalibrate, an iterator": (recalibrated(iter((ROWS,)), layer_by_layer=True), ONLY_ONCE),
    "recalibrate, no batch": (recalibrated([]), NO_BATCH),
    "recalibrate, where": (recalibrated(where="nb"), not_meant("norm with running statistics")),
    "recalibrate, other features": (
        recalibrated(
            variables={**VARIABLES, "batch_stats": {"bn": variables_of(2)["batch_stats"]}}
        ),
        OTHER_FEATURES,
    ),
    "recalibrate, no statistics": (
        recalibrated(variables={"params": VARIABLES["params"]}),
        STATS_MISSING,
    ),
    "data, not finite": (recalibrated([ROWS, ROWS * NAN]), NOT_FINITE),
    "data, nothing counts": (recalibrated([ROWS[:0]]), NOTHING_COUNTS),
    "examine, more than a batch": (
        lambda: tools.examine(Asking(), ROWS, variables=VARIABLES),
        "run must be given for a model that takes more than a batch and a flag; got Asking.__call__(self, x, "
        "train, labels). Say how to call it, as in run=lambda model, batch: model(batch, train=..., "
        "labels=...).",
    ),
    "examine, no norm": (
        lambda: tools.examine(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), ROWS),
        CALLS_NONE,
    ),
    "examine, variables of NNX": (
        lambda: tools.examine(NNX_MODEL, ROWS, variables=VARIABLES),
        VARIABLES_OF_NNX,
    ),
    **{
        f"{name}, rngs of NNX": (partial(tool, *given, rngs={"dropout": KEY}), RNGS_OF_NNX)
        for name, tool, *given in (
            ("recalibrate", tools.recalibrate, NNX_MODEL, [ROWS]),
            ("examine", tools.examine, NNX_MODEL, ROWS),
            ("fold", tools.fold, NNX_MODEL, ROWS),
            ("accumulate", partial(tools.accumulate, micro_batches=2), call, NNX_MODEL, ROWS),
        )
    },
    "freeze, no variables": (lambda: tools.freeze(Model()), no_variables("NoneType")),
    "freeze, parameters": (
        lambda: tools.freeze(Model(), variables=VARIABLES["params"]),
        no_variables("['dense', 'bn']"),
    ),
    "freeze, no norm": (
        lambda: tools.freeze(Model(), variables={"params": VARIABLES["params"]}),
        no_layer("norm with running statistics"),
    ),
    "freeze, where": (
        lambda: tools.freeze(Model(), "nb", variables=VARIABLES),
        not_meant("norm with running statistics"),
    ),
    "freeze, where, itself": (
        lambda: tools.freeze(jnx.BatchNorm(4, rngs=nnx.Rngs(0)), "nb"),
        not_meant("norm with running statistics", "'' (the model itself)"),
    ),
    "unfreeze, variables": (lambda: tools.unfreeze(cast(Any, VARIABLES)), no_model("dict")),
    "norm_mask, where": (lambda: tools.norm_mask(VARIABLES["params"], "nb"), not_meant("norm")),
    "norm_mask, no norm": (
        lambda: tools.norm_mask(VARIABLES["params"]["dense"], "nb"),
        no_layer("norm"),
    ),
    "swap, apply": (
        lambda: tools.swap(cast(Any, Model().apply), "layer", variables=VARIABLES),
        no_model("method"),
    ),
    "swap, of weights": (swapped("spectral"), no_norm("nnx", "'spectral'")),
    "swap, of Linen": (
        swapped(nn.LayerNorm),
        no_norm("nnx", "<class 'flax.linen.normalization.LayerNorm'>"),
    ),
    "swap, activation": (swapped(nnx.LayerNorm, activation="relu"), ACTIVATION_LOST),
    "swap, residual": (residual_of_swapped, RESIDUAL_LOST),
    "swap, no statistics": (
        lambda: tools.swap(with_untracked(), "frozen_batch"),
        NOTHING_TO_FREEZE,
    ),
    "swap, mask": (mask_of_swapped, MASK_LOST),
    "swap, more than a norm": (
        lambda: tools.swap(NormRelu(4, rngs=nnx.Rngs(0)), "layer"),
        MORE_THAN_A_NORM,
    ),
    "swap, no hash": (
        lambda: tools.swap(Model(), "layer", variables=VARIABLES, epsilon=EPSILONS),
        NO_HASH,
    ),
    "swap, axis": (swapped(nnx.GroupNorm, axis=1), LAST_AXIS_ONLY),
    "accumulate, parts": (accumulated(ROWS, 4), no_parts(4, "[6]")),
    "accumulate, examples": (accumulated({"x": ROWS, "y": X[:2]}, 2), no_parts(2, "[2, 6]")),
    "accumulate, nothing": (accumulated({}, 2), no_parts(2, "no")),
    **{
        f"state, {type(given).__name__} with NNX": (
            partial(tools.TrainState.of, cast(Any, NNX_MODEL), given, cast(Any, None)),
            "model must be a Linen module; got an NNX model, BatchNorm, which holds its own variables. Use "
            "nnx.Optimizer(model, tx, wrt=nnx.Param), and nnx.state(model) for checkpoints.",
        )
        for given in (None, {})
    },
    "average, decay": (
        lambda: tools.average({"a": ROWS[0]}, {"a": ROWS[0]}, 99.9),
        "decay must lie in [0, 1]; got decay=99.9. It is the weight of the old average: 0.999 "
        "moves slowly.",
    ),
    "average, trees": (lambda: tools.average({"a": ROWS[0]}, {"b": ROWS[0]}, 0.9), OTHER_TREE),
    "keep_finite, shapes": (lambda: tools.keep_finite(ROWS[0], ROWS[0, :1]), OTHER_LEAF),
    "axis_name, number": (
        synced(5),
        "axis_name must be one or more names of mapped axes; got 5. jax's collectives read a number as a "
        "position: name the axis with a string.",
    ),
    "combine, tuple": (
        lambda: jn.combine((1, 2, 3), moments(3)),  # pyright: ignore[reportArgumentType]
        "a must be Moments(mean, var, count); got tuple. Compute it with moments, or convert a tuple t with "
        "Moments(*t).",
    ),
    "conv_spectral_norm, padding": (
        lambda: jn.conv_spectral_norm(
            jnp.ones((3, 3, 2, 4)), jnp.ones((1, 5, 5, 2)), padding="same"
        ),
        "padding must be SAME, SAME_LOWER, VALID or a pair for each axis; got 'same'. Use the padding "
        "of the layer.",
    ),
    "act_norm, bias": (
        lambda: jn.act_norm(X, jnp.ones(4), None),  # pyright: ignore[reportArgumentType]
        "bias must be an array of numbers; got None. See help(jaxnorm.act_norm).",
    ),
    "batch_renorm, rmax": (
        lambda: jn.batch_renorm(X, STATS, rmax=None),  # pyright: ignore[reportArgumentType]
        "rmax must be a real number or an array of numbers; got None. See help(jaxnorm.batch_renorm).",
    ),
    "group_norm, dtype": (
        lambda: jn.group_norm(X, num_groups=2, dtype="float33"),
        "dtype must be a dtype or None; got 'float33'. See help(jaxnorm.group_norm).",
    ),
    **zoo_errors.ERRORS,
}


@pytest.mark.parametrize("case", ERRORS)
def test_message(case: str) -> None:
    """The ValueError has exactly the expected text."""
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=r".") as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize("case", [c for c in ERRORS if c.split(", ")[0] not in ("stats", "data")])
def test_message_under_jit(case: str) -> None:
    """Tracing raises the same error, so invalid arguments do not surface only after compilation."""
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=r".") as raised:
        jax.jit(call)()
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "call",
    [
        lambda **typo: jn.batch_norm(X, STATS, **typo),
        lambda **typo: jn.batch_norm_inference(X, STATS, **typo),
        lambda **typo: jn.moments(X, 0, **typo),
        lambda **typo: jn.update_running_stats(STATS, jn.moments(X, (0, 1)), **typo),
        lambda **typo: jn.init_running_stats(4, **typo),
        lambda **typo: jn.RunningStats(X, X, **typo),
        lambda **typo: jnl.BatchNorm(**typo),
        lambda **typo: jnl.BatchNorm(True).init(jax.random.key(0), X, **typo),
        lambda **typo: jnx.BatchNorm(4, rngs=nnx.Rngs(0), **typo),
        lambda **typo: jnl.get_norm("batch", **typo),
        lambda **typo: jnx.get_norm("batch", **typo),
    ],
    ids=[
        "train",
        "eval",
        "moments",
        "update",
        "init",
        "stats",
        "BatchNorm",
        "call",
        "NNX",
        "get_norm",
        "get_norm-NNX",
    ],
)
def test_typo_in_a_keyword(call: Callable[..., Any]) -> None:
    """A misspelled option raises a TypeError that names it."""
    with pytest.raises(TypeError, match="'epsilonn'"):
        call(epsilonn=1e-3)


def test_options_are_keywords() -> None:
    """Arguments after scale and bias are keyword-only, so that nobody has to guess their order."""
    with pytest.raises(TypeError, match="positional"):
        jn.batch_norm(X, STATS, None, None, -1)  # pyright: ignore[reportCallIssue]


def test_wrong_parameters_of_a_layer_are_refused_as_by_flax() -> None:
    """Parameters of the wrong shape raise Flax's own error, which names the variable."""
    variables = {**variables_of(4), "params": {"scale": jnp.ones(5), "bias": jnp.ones(4)}}
    texts = []
    for norm in (jnl.BatchNorm, nn.BatchNorm):
        with pytest.raises(Exception, match='parameter "scale"') as raised:
            norm(True).apply(variables, X)
        texts.append((raised.type, str(raised.value)))
    assert texts[0] == texts[1]


def test_every_error_of_the_package_is_here() -> None:
    """Every ``raise ValueError`` in the package has a message that is tested above."""
    messages = [message for _, message in ERRORS.values()]
    untested = []
    for path in Path(jn.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id="ValueError"), args=[text])):
                    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
                    words = [p.value for p in parts if isinstance(p, ast.Constant)]
                    if not any(all(str(w) in m for w in words) for m in messages):
                        untested.append(f"{path.name}:{node.lineno}")
    assert untested == []
