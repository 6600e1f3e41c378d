"""Errors of the norms that Flax does not have, word for word: rows for `test_errors`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import jaxnorm as jn
from jaxnorm import linen as jnl

KEY = jax.random.key(0)
X = jnp.ones((6, 5, 4))
STATS = jn.init_running_stats(4)
KERNEL, IMAGE = jnp.ones((3, 3, 4, 2)), jnp.ones((1, 8, 8, 4))

OTHER_STYLE = (
    "style must have the same rank, examples and features as x; got style of shape (6, 5, 3) for x of "
    "shape (6, 5, 4) with feature_axes=(2,). Only the positions may differ."
)
OTHER_SUMMAND = (
    "residual must have the shape of x; got (5, 4) for x of shape (6, 5, 4). It is added elementwise, before "
    "the norm: broadcast it or project it to that shape."
)
NO_AVERAGE = (
    "momentum must be a number in [0, 1] here; got None. Averaging all batches equally is not supported "
    "for whitening matrices; 0.9 is typical."
)
MASKED_CHANNELS = (
    "mask must be the same for all channels in whitening; got mask of shape (1, 1, 4) with channels along "
    "axis 2. Give it size 1 there."
)
THREE_WEIGHTS = (
    "mean_weights must be three numbers, one each for instance norm, layer norm and batch norm; got shape "
    "(2,). Start from jnp.ones(3), which weights them equally."
)
NO_IMAGE = (
    "image must have shape (1, height, width, channels in) for a kernel of shape (height, width, channels "
    "in, channels out); got image of shape (2, 8, 8, 4) for kernel of shape (3, 3, 4, 2). Start from a "
    "random image of the layer's input size."
)
NO_STEPS = (
    "n_steps must be a positive integer; got 0. 1 is enough in training, where each step continues from the "
    "previous one."
)


def not_a_norm(p: str) -> str:
    """The error for a p below 1, or one that is not a number."""
    return (
        f"p must be a real number, at least 1; got {p}. 2 gives the Euclidean length, math.inf the largest "
        f"absolute value."
    )


def not_a_domain(dtype: str, shape: str) -> str:
    """The error for a domain that is not a single integer."""
    return (
        f"domain must be a single integer for the whole batch; got {dtype} of shape {shape}. Put only one "
        f"domain in each batch."
    )


def not_of_examples(name: str, shape: str) -> str:
    """The error for a modulation of the wrong shape."""
    return (
        f"{name} must have one value per feature per example, or the rank of x; got {name} of shape {shape} "
        f"for x of shape (6, 5, 4) with feature_axes=(2,), which needs (6, 4), or rank 3 with each size 1 or "
        f"that of x. If all examples share {name}, pass it to the norm itself."
    )


FRACTION_AXES = (
    "fraction must be 1 unless there is a single reduction axis and no axis_name; got "
    "reduction_axes=(1, 2) and axis_name=None. Leave fraction at 1."
)


def not_a_fraction(fraction: str) -> str:
    """The error for a fraction that takes no features, or more than there are."""
    return (
        f"fraction must lie in (0, 1] and select at least one feature; got fraction={fraction} of 4 "
        f"features. The paper uses 0.0625; 1 selects all features."
    )


OFFSET_OF_NOTHING = (
    "scale_offset requires a scale to add it to; got an offset but no scale. Pass a scale (use_scale=True "
    "in a module), or omit scale_offset."
)


def not_a_channel_axis(came: str, shape: str) -> str:
    """The error for feature_axes in a layer that only supports the last axis."""
    return (
        f"feature_axes must be the last axis in this layer; got {came} for x of shape {shape}. Move the "
        f"features there."
    )


def not_whitened(shape: str, groups: str) -> str:
    """The error for several channel axes, or for groups of devices."""
    return (
        f"whitening requires a single channel axis and no axis_index_groups; got features of shape {shape} "
        f"and axis_index_groups={groups}. Reshape the channels into one axis; give groups of devices their "
        f"own axis name."
    )


NO_WHITENING_STATS = (
    "stats must be WhiteningStats for the 4 channels of x; got None. Start from init_whitening(4)."
)
MASKED_QUERIES = (
    "mask must be None in QK norm, where positions do not interact; got a mask. Mask the logits."
)
NO_KIND = (
    "kind must be 'rms', 'layer' or 'l2'; got 'batch'. Language models use 'rms', ViT-22B 'layer', cosine "
    "attention 'l2'."
)
BIAS_OF_RMS = (
    "query_bias and key_bias must be None unless kind is 'layer'; got a bias with kind='rms'. Add it to the "
    "result (use_bias=False in a module)."
)
NO_MAP = (
    "x and its map must have shape (N, height, width, channels) with the same N; got shapes (1, 8, 8, 4) "
    "and (8, 8, 4). Put the channels last."
)
NO_CONDITION = (
    "condition must have shape (examples, ..., 3) to match condition_features; got shape (3,)."
)
SHARE_OUTSIDE = (
    "running_share must lie in [0, 1]; got running_share=2.0. 1 is evaluation, 0 normalizes as in "
    "training."
)
NO_FEATURES = "features must be an integer of 1 or more; got 0. It is the number of channels."
NO_OFFSET = "scale_offset must be finite; got scale_offset=nan. Check how it was computed."
GAIN_SHAPE = (
    "gain must broadcast to kernel; got shape (5, 3, 3, 4, 2) for a kernel of shape (3, 3, 4, 2). A scalar "
    "is typical."
)
NO_SUCH_DOMAIN = "domain must lie in [0, 1]; got 2. Create statistics for more domains."
LOW_LIMIT = "rmax must be 1 or more; got rmax=0.5. rmax=1 with dmax=0 is batch norm."
NO_SIMPLEX = (
    "simplex_size must divide the number of features; got 3 for 4 features. Choose a divisor of 4."
)
NOT_IN_GROUPS = (
    "num_groups must divide the number of channels; got 3 for 4 channels. Choose a divisor of 4."
)
NO_INPUT_STATS = (
    "stats must be InputStats; got RunningStats. Start from init_input_norm(feature_shape) and pass what the "
    "last step returned; convert a dict or a tuple from a checkpoint with InputStats(**d) or InputStats(*t)."
)
WEIGHTS_SHAPE = (
    "weights must be real and broadcast to x; got float32 weights of shape (6,) for x of shape (6, 5, 4). "
    "Axes are aligned from the last: weights of the examples in x need shape (6, 1, 1)."
)
NO_LIMIT = "max_abs must be positive; got max_abs=0.0. 10 is usual."
NO_SUCH_FORM = (
    "form must be 'paper' or 'crossq'; got 'sbx'. The first averages the standard deviation, the second the "
    "variance."
)
NO_WARMUP = "warmup_steps must be an integer of 0 or more; got -1. 0 is no warm-up."
NEGATIVE_LIMIT = "dmax must be 0 or more; got dmax=-1.0. dmax=0 with rmax=1 is batch norm."
DOMAINS = jn.init_running_stats((2, 4))
DOMAIN_2 = jnp.int32(2)


def whitened(**options: Any) -> Callable[[], Any]:
    """A deferred call of `iterative_whitening`."""
    return lambda: jn.iterative_whitening(X, jn.init_whitening(4), **options)


def complex_values(norm: str, instead: str) -> str:
    """The error for complex values in a norm without a formula for them."""
    return (
        f"{norm} must have real values; got complex64. Use their real and imaginary parts as features, or "
        f"use {instead}, which takes complex values."
    )


COMPLEX, COMPLEX_SCALE = X.astype(jnp.complex64), jnp.ones(4, jnp.complex64)
REAL_ONLY: dict[str, tuple[Callable[[], Any], str]] = {
    "batch_renorm": (lambda: jn.batch_renorm(COMPLEX, STATS), "batch_norm"),
    "batch_renorm, module": (
        lambda: jnl.BatchRenorm(use_running_average=False).init(KEY, COMPLEX),
        "batch_norm",
    ),
    "input_norm": (lambda: jn.input_norm(COMPLEX, jn.init_input_norm(4)), "batch_norm"),
    "input_norm_inference": (
        lambda: jn.input_norm_inference(COMPLEX, jn.init_input_norm(4)),
        "batch_norm_inference",
    ),
    "input_norm_inverse": (
        lambda: jn.input_norm_inverse(COMPLEX, jn.init_input_norm(4)),
        "batch_norm_inference",
    ),
    "batch_renorm, scale": (lambda: jn.batch_renorm(X, STATS, COMPLEX_SCALE), "batch_norm"),
    "conv_spectral_norm": (
        lambda: jn.conv_spectral_norm(KERNEL.astype(jnp.complex64), IMAGE),
        "spectral_norm",
    ),
    "derf": (lambda: jn.derf(COMPLEX), "layer_norm"),
    "evo_norm_b0": (
        lambda: jn.evo_norm_b0(COMPLEX, STATS, jnp.ones(4)),
        "batch_norm",
    ),
    "evo_norm_b1": (lambda: jn.evo_norm_b1(COMPLEX, STATS), "batch_norm"),
    "evo_norm_b1_inference": (
        lambda: jn.evo_norm_b1_inference(COMPLEX, STATS),
        "batch_norm_inference",
    ),
    "evo_norm_b2": (lambda: jn.evo_norm_b2(COMPLEX, STATS), "batch_norm"),
    "evo_norm_b2_inference": (
        lambda: jn.evo_norm_b2_inference(COMPLEX, STATS),
        "batch_norm_inference",
    ),
    "sim_norm": (lambda: jn.sim_norm(COMPLEX, simplex_size=2), "l2_normalize"),
    "evo_norm_s0": (lambda: jn.evo_norm_s0(COMPLEX, jnp.ones(4), num_groups=2), "group_norm"),
    "evo_norm_s1": (lambda: jn.evo_norm_s1(COMPLEX, num_groups=2), "group_norm"),
    "evo_norm_s2": (lambda: jn.evo_norm_s2(COMPLEX, num_groups=2), "group_norm"),
    "filter_response_norm": (lambda: jn.filter_response_norm(COMPLEX), "instance_norm"),
    "iterative_whitening": (
        lambda: jn.iterative_whitening(COMPLEX, jn.init_whitening(4)),
        "batch_norm",
    ),
}


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "rms_norm, fraction": (lambda: jn.rms_norm(X, fraction=0.1), not_a_fraction("0.1")),
    "rms_norm, too much": (lambda: jn.rms_norm(X, fraction=2.0), not_a_fraction("2.0")),
    "rms_norm, nan": (
        lambda: jn.rms_norm(X, fraction=float("nan")),
        not_a_fraction("nan"),
    ),
    "rms_norm, axes": (
        lambda: jn.rms_norm(X, reduction_axes=(1, 2), fraction=0.5),
        FRACTION_AXES,
    ),
    **{
        f"{name}, offset{what}": (partial(norm, X, scale_offset=offset), OFFSET_OF_NOTHING)
        for name, norm in {"rms_norm": jn.rms_norm, "modulate": jn.modulate}.items()
        for what, offset in (("", 1.0), (", array", jnp.zeros(())))
    },
    **{
        f"{case}, complex": (call, complex_values(case.split(",")[0], instead))
        for case, (call, instead) in REAL_ONLY.items()
    },
    "add_rms_norm, residual": (lambda: jn.add_rms_norm(X, X[0]), OTHER_SUMMAND),
    "add_layer_norm, residual": (lambda: jn.add_layer_norm(X, X[0]), OTHER_SUMMAND),
    "adain, style": (lambda: jn.adain(X, X[:, :, :3]), OTHER_STYLE),
    "domain, float": (lambda: jn.stats_of_domain(STATS, 0.5), not_a_domain("float32", "()")),  # pyright: ignore[reportArgumentType]
    "domain, several": (
        lambda: jn.with_stats_of_domain(STATS, jnp.arange(2), STATS),
        not_a_domain("int32", "(2,)"),
    ),
    "whitening, average": (whitened(momentum=None), NO_AVERAGE),
    "whitening, mask": (whitened(mask=jnp.ones(4, bool)), MASKED_CHANNELS),
    "whitening, stats": (
        lambda: jn.iterative_whitening(X, None),  # pyright: ignore[reportArgumentType]
        NO_WHITENING_STATS,
    ),
    "whitening, axes": (
        lambda: jnl.IterativeWhitening(use_running_average=False, feature_axes=(1, 2)).init(KEY, X),
        not_whitened("(5, 4)", "None"),
    ),
    "whitening, groups": (
        lambda: jnl.IterativeWhitening(
            use_running_average=False, axis_index_groups=[[0], [1]]
        ).init(KEY, X),
        not_whitened("(4,)", "((0,), (1,))"),
    ),
    "qk_norm, kind": (lambda: jn.qk_norm(X, X, kind="batch"), NO_KIND),  # pyright: ignore[reportArgumentType]
    "qk_norm, bias": (lambda: jn.qk_norm(X, X, key_bias=X[0, 0]), BIAS_OF_RMS),
    "QKNorm, mask": (lambda: jnl.QKNorm().init(KEY, X, X, mask=X > 0), MASKED_QUERIES),
    "Spade, axis": (
        lambda: jnl.Spade(map_channels=4, feature_axes=1).init(KEY, IMAGE, IMAGE),
        not_a_channel_axis("1", "(1, 8, 8, 4)"),
    ),
    "Spade, map": (lambda: jnl.Spade(map_channels=4).init(KEY, IMAGE, IMAGE[0]), NO_MAP),
    "AdaLayerNorm, condition": (
        lambda: jnl.AdaLayerNorm(condition_features=3).init(KEY, X, jnp.ones(3)),
        NO_CONDITION,
    ),
    "init_whitening": (lambda: jn.init_whitening(0), NO_FEATURES),
    "init_whitening, groups": (lambda: jn.init_whitening(4, num_groups=3), NOT_IN_GROUPS),
    "scale_offset": (lambda: jn.rms_norm(X, X[0, 0], scale_offset=float("nan")), NO_OFFSET),
    "adapted, share": (
        lambda: jn.batch_norm_adapted(X, STATS, running_share=2.0),
        SHARE_OUTSIDE,
    ),
    "magnitude, gain": (
        lambda: jn.magnitude_preserving(KERNEL, jnp.ones((5, *KERNEL.shape))),
        GAIN_SHAPE,
    ),
    "domain, number": (lambda: jn.stats_of_domain(DOMAINS, 2), NO_SUCH_DOMAIN),
    "domain, array": (lambda: jn.stats_of_domain(DOMAINS, DOMAIN_2), NO_SUCH_DOMAIN),
    "batch_renorm, rmax": (lambda: jn.batch_renorm(X, STATS, rmax=0.5), LOW_LIMIT),
    "batch_renorm, dmax": (lambda: jn.batch_renorm(X, STATS, dmax=-1.0), NEGATIVE_LIMIT),
    "batch_renorm, form": (
        lambda: jn.batch_renorm(X, STATS, form="sbx"),  # pyright: ignore[reportArgumentType]
        NO_SUCH_FORM,
    ),
    "batch_renorm, warm-up": (lambda: jnl.BatchRenorm(warmup_steps=-1), NO_WARMUP),
    "sim_norm, size": (lambda: jn.sim_norm(X, simplex_size=3), NO_SIMPLEX),
    "input_norm, stats": (
        lambda: jn.input_norm(X, STATS),  # pyright: ignore[reportArgumentType]
        NO_INPUT_STATS,
    ),
    "input_norm, weights": (
        lambda: jn.input_norm(X, jn.init_input_norm(4), weights=jnp.ones(6)),
        WEIGHTS_SHAPE,
    ),
    "input_norm, limit": (
        lambda: jn.input_norm(X, jn.init_input_norm(4), max_abs=0.0),
        NO_LIMIT,
    ),
    "lp_normalize, p": (lambda: jn.lp_normalize(X, p=0.5), not_a_norm("0.5")),
    "lp_normalize, no number": (lambda: jn.lp_normalize(X, p="2"), not_a_norm("'2'")),  # pyright: ignore[reportArgumentType]
    "modulate, scale": (
        lambda: jn.modulate(X, jnp.ones(4)),
        not_of_examples("scale", "(4,)"),
    ),
    "modulate, bias": (
        lambda: jn.modulate(X, None, jnp.ones((6, 2, 4))),
        not_of_examples("bias", "(6, 2, 4)"),
    ),
    "switchable, weights": (
        lambda: jn.switchable_norm(X, STATS, jnp.ones(2), jnp.ones(3)),
        THREE_WEIGHTS,
    ),
    "conv_spectral_norm, image": (
        lambda: jn.conv_spectral_norm(KERNEL, jnp.concatenate([IMAGE, IMAGE])),
        NO_IMAGE,
    ),
    "conv_spectral_norm, steps": (
        lambda: jn.conv_spectral_norm(KERNEL, IMAGE, n_steps=0),
        NO_STEPS,
    ),
}
