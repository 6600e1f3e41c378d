"""Everything that `fold` refuses, with the reason, and similar models for which it is exact."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxnorm as jn
from jaxnorm import linen as jnl, nnx as jnx, tools
from jaxnorm.tools._fold import _fold
from jaxnorm.tools._fold._folded import without_norms
from tests.tools.folding import Layers, Model, applied, data, in_nnx, linen

IMAGE = (2, 6, 5, 4)
NOT_AFTER = ") nor the layer after (its output must go to one layer only, but goes to "


def norm(**options: Any) -> jnl.BatchNorm:
    """The norm that is not folded."""
    return jnl.BatchNorm(True, name="norm", **options)


def conv(name: str = "conv", **options: Any) -> nn.Conv:
    """The layer that would absorb it."""
    return nn.Conv(4, (3, 3), name=name, **options)


def before(reason: str, reader: str = "the output of the model") -> str:
    """A reason against the layer before, if no layer comes after the norm."""
    return f"it folds into neither the layer before ({reason}{NOT_AFTER}{reader})"


def after(reason: str) -> str:
    """A reason against the layer after, if the norm comes first."""
    return (
        "it folds into neither the layer before (its input comes from the batch) nor the layer after "
        f"({reason})"
    )


class Scaled(nn.Conv):
    """A convolution that computes something else."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves 2 x."""
        return super().__call__(2 * x)


class Squared(jnl.BatchNorm):
    """A norm that computes something else."""

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Normalizes x²."""
        return super().__call__(x * x, *args, **kwargs)


def read_again(x: jax.Array) -> jax.Array:
    """The convolution's output has another reader than the norm."""
    y = conv()(x)
    return norm()(y) + y


def residual_is_the_same(x: jax.Array) -> jax.Array:
    """The norm itself reads it as its residual."""
    y = conv()(x)
    return norm()(y, residual=y)


def two_norms(x: jax.Array) -> Any:
    """Two norms read one convolution."""
    y = conv()(x)
    return norm()(y), jnl.BatchNorm(True, name="other")(y)


def returned(x: jax.Array) -> Any:
    """The model returns the convolution's output."""
    y = conv()(x)
    return norm()(y), y[:, ::2]


def used_twice(x: jax.Array) -> jax.Array:
    """One convolution is called twice."""
    layer = conv()
    return norm()(layer(layer(x)))


def tied(x: jax.Array) -> jax.Array:
    """The embedding is also used for the logits."""
    embed = nn.Embed(5, 6, name="embed")
    return embed.attend(norm()(embed(jnp.arange(10).reshape(2, 5) % 5)))


def convolved(_: Any, x: jax.Array) -> jax.Array:
    """A convolution and the norm, in a module made by one of Flax's transforms."""
    return norm()(conv()(x))


class InAScan(nn.Module):
    """A norm in the body of a loop."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Runs two iterations."""
        variables: Any = ("params", "batch_stats")
        scan = nn.scan(
            lambda module, x, _: (convolved(module, x), None),
            variable_broadcast=variables,
            split_rngs={"params": False},
            length=2,
        )
        return scan(self, x, None)[0]


class UnderVmap(nn.Module):
    """A model for one image, mapped over several."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps over all images."""
        axes: Any = {"params": None, "batch_stats": None}
        return nn.vmap(convolved, variable_axes=axes, split_rngs={"params": False})(self, x)


def weight_norm(x: jax.Array) -> jax.Array:
    """The kernel is computed from another one."""
    return norm()(jnl.WeightNorm(conv())(x))


def mapped_kernel(x: jax.Array) -> jax.Array:
    """The same with a transform of Flax, in which the layer calls itself with other variables."""
    squashed = lambda variables: jax.tree.map(jnp.tanh, variables)  # noqa: E731
    kind: Any = nn.map_variables(nn.Conv, "params", squashed, init=True)
    return norm()(kind(4, (3, 3), name="conv")(x))


def read_by_two(x: jax.Array) -> jax.Array:
    """Two layers read the norm."""
    y = norm()(x)
    return conv("a", padding="VALID")(y) + conv("b", padding="VALID")(y)


# Functions create the modules in each call, since Linen modules belong to their parent.
CASES: dict[str, tuple[nn.Module | Callable[[jax.Array], Any], str]] = {
    "read again": (read_again, before("the output of conv also goes to add", "add")),
    "residual": (
        residual_is_the_same,
        before("the output of conv also goes to another argument of norm"),
    ),
    "two norms": (two_norms, before("the output of conv also goes to other")),
    "returned": (returned, before("the output of conv also goes to the output of the model")),
    "used twice": (used_twice, before("the output of conv also goes to conv")),
    "norm used twice": (
        lambda x: (lambda n: n(n(conv()(x))))(norm()),
        "norm is called 2 times",
    ),
    "tied": (
        tied,
        before("the embedding of embed is also read elsewhere", "dot_general"),
    ),
    "scan": (InAScan(), "norm is called inside scan"),
    "vmap": (UnderVmap(), "norm is called inside vmap"),
    "weight norm": (weight_norm, before("the kernel of conv is also read elsewhere")),
    "mapped kernel": (mapped_kernel, before("conv is called 2 times")),
    "activation": (
        lambda x: norm()(nn.relu(conv()(x))),
        before("its input comes from max"),
    ),
    "norm of norm": (
        lambda x: norm()(jnl.BatchNorm(True, name="other")(conv()(x))),
        before("its input comes from another batch norm, other"),
    ),
    "max pool, negative scale": (
        lambda x: norm()(nn.max_pool(conv()(x), (2, 2))),
        before(
            "reduce_window_max is between the two, and the norm's scale is negative in some channels"
        ),
    ),
    "average": (
        lambda x: norm()(conv()(x).mean(1)),
        before("its input comes from div"),
    ),
    "maximum over channels": (
        lambda x: norm()(conv()(x).max(-1)),
        before("its input comes from reduce_max"),
    ),
    "maximum over as many channels as places": (
        lambda x: norm()(conv()(x[:, :, :4]).max(-1)),
        before("its input comes from reduce_max"),
    ),
    "maximum of neighbouring channels": (
        lambda x: norm()(
            jax.lax.reduce_window(
                conv()(x), -jnp.inf, jax.lax.max, (1, 1, 1, 2), (1, 1, 1, 1), "SAME"
            )
        ),
        before("its input comes from reduce_window_max"),
    ),
    "some channels": (lambda x: norm()(conv()(x)[..., :2]), before("its input comes from slice")),
    "channels merged": (
        lambda x: norm()(conv()(x).reshape(2, -1)),
        before("its input comes from reshape"),
    ),
    "maxima of two layers": (
        lambda x: norm()(jnp.maximum(conv()(x), conv("other")(x))),
        before("its input comes from max"),
    ),
    "integers": (
        lambda x: norm()(conv()(x).astype(jnp.int32)),
        before("its input comes from convert_element_type"),
    ),
    "other axis": (
        lambda x: norm(axis=1)(conv()(x)),
        before("its axis is not a channel axis of conv"),
    ),
    "not tracked": (
        lambda x: norm(track_running_stats=False)(jnl.BatchNorm(True)(conv()(x))),
        "it keeps no running statistics and normalizes with batch statistics",
    ),
    "training": (
        lambda x: jnl.BatchNorm(name="norm")(conv()(x), use_running_average=False),
        "it normalizes with batch statistics: make run call the model in evaluation mode",
    ),
    "training, by position": (
        lambda x: jnl.BatchNorm(name="norm")(conv()(x), False),
        "it normalizes with batch statistics: make run call the model in evaluation mode",
    ),
    "class of a layer": (
        lambda x: norm()(Scaled(4, (3, 3), name="conv")(x)),
        before("conv is of class Scaled, which overrides __call__"),
    ),
    "class of the norm": (
        lambda x: Squared(True, name="norm")(conv()(x)),
        "norm is of class Squared, which overrides __call__",
    ),
    "function": (
        lambda x: norm()(nn.Dense(4, dot_general=jax.lax.dot_general, name="dense")(x)),
        before("dense has a custom dot_general"),
    ),
    "batch axis": (
        lambda x: norm()(nn.DenseGeneral(4, batch_dims=(0,), name="dense")(x)),
        before("dense has a kernel for each index of a batch axis"),
    ),
    "zero padding": (
        lambda x: conv()(norm()(x)),
        after("conv pads with zeros, and the norm is not applied to the padding"),
    ),
    "zero padding in numbers": (
        lambda x: conv(padding=((0, 0), (0, 1)))(norm()(x)),
        after("conv pads with zeros, and the norm is not applied to the padding"),
    ),
    "zeros between": (
        lambda x: (
            conv(padding="VALID", input_dilation=2)(norm()(x))
            if False
            else conv(padding=0, input_dilation=2)(norm()(x))
        ),
        after("conv pads with zeros, and the norm is not applied to the padding"),
    ),
    "mask": (
        lambda x: conv(padding="VALID", mask=np.ones((3, 3, 4, 4), np.float32))(norm()(x)),
        after("conv has a mask"),
    ),
    "transposed after": (
        lambda x: nn.ConvTranspose(4, (3, 3), name="conv")(norm()(x)),
        after("conv is not a dense layer or convolution"),
    ),
    "read by two": (
        read_by_two,
        after("its output must go to one layer only, but goes to a, b"),
    ),
    "read by more": (
        lambda x: (lambda y: nn.Dense(4, name="dense")(y) + y)(norm()(x)),
        after("its output must go to one layer only, but goes to add, dense"),
    ),
    "activation of the norm": (
        lambda x: nn.Dense(4, name="dense")(norm(activation="relu")(x)),
        after("it applies an activation or a residual after normalizing"),
    ),
    "residual of the norm": (
        lambda x: nn.Dense(4, name="dense")(norm()(x, residual=x)),
        after("it applies an activation or a residual after normalizing"),
    ),
    "moved before the layer": (
        lambda x: nn.Dense(4, name="dense")(norm()(x)[:, 1:]),
        after("slice is between it and dense"),
    ),
    "after, other axis": (
        lambda x: nn.Dense(4, name="dense")(norm(axis=1)(x)),
        after("its axis is not the one that dense sums over"),
    ),
    "after, several axes": (
        lambda x: nn.DenseGeneral(4, axis=(-2, -1), name="dense")(norm()(x)),
        after("its axis is not the one that dense sums over"),
    ),
    "after, used twice": (
        lambda x: (lambda dense: dense(dense(norm()(x))))(nn.Dense(4, name="dense")),
        after("dense is called 2 times"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_reason(case: str) -> None:
    """The norm stays, and the reason is given in words."""
    function, reason = CASES[case]
    model, x = function if isinstance(function, nn.Module) else Model(function), data(*IMAGE)
    variables = linen(model, x)
    folded = tools.fold(model, x, variables=variables, where="norm", partial=True)
    assert folded.refused == {"norm": reason}
    assert folded.pairs == {} and folded.difference == 0


def test_statistics_that_are_not_finite() -> None:
    """A negative variance has no root."""
    model, x = Model(lambda x: norm()(conv()(x))), data(*IMAGE)
    variables = linen(model, x)
    variables["batch_stats"]["norm"]["var"] = -jnp.ones(4)
    folded = tools.fold(model, x, variables=variables, partial=True)
    assert folded.refused == {"norm": "its statistics or parameters are not finite"}


class Tied(nnx.Module):
    """Two layers with the same kernel, one with a norm."""

    def __init__(self, rngs: nnx.Rngs, norm_of: int) -> None:
        """Creates the layers."""
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.Linear(4, 4, rngs=rngs)
        self.second.kernel = self.first.kernel
        self.norm = jnx.BatchNorm(4, rngs=rngs)
        self.norm_of = norm_of

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layers in sequence."""
        for i, layer in enumerate((self.first, self.second)):
            x = layer(x)
            x = self.norm(x) if i == self.norm_of else jnp.tanh(x)
        return x


@pytest.mark.parametrize("norm_of", [0, 1])
def test_shared_kernels_in_nnx(norm_of: int) -> None:
    """The kernel that two layers share cannot be changed for either."""
    model, x = in_nnx(Tied(nnx.Rngs(0), norm_of)), data(3, 4)
    (reason,) = tools.fold(model, x, partial=True).refused.values()
    expected = (
        "the kernel of first is also read elsewhere",
        "second shares its kernel with another layer",
    )
    assert reason.startswith(f"it folds into neither the layer before ({expected[norm_of]}) ")


class Wrapped(nnx.Module):
    """A convolution with a normalized kernel, and a batch norm."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        """Creates both."""
        self.conv = jnx.WeightNorm(nnx.Conv(4, 4, (3, 3), rngs=rngs), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the norm last."""
        return self.norm(self.conv(x))


def test_wrapped_layer_in_nnx() -> None:
    """A kernel that is computed from another one cannot be changed."""
    model, x = in_nnx(Wrapped(nnx.Rngs(0))), data(*IMAGE)
    folded = tools.fold(model, x, partial=True)
    assert folded.pairs == {} and "kernel" in folded.refused["norm"]


def test_own_function_in_nnx() -> None:
    """A promote_dtype other than Flax's is refused."""
    own = lambda arrays, **_: arrays  # noqa: E731
    layer = nnx.Linear(4, 4, promote_dtype=own, rngs=nnx.Rngs(0))
    model = in_nnx(nnx.Sequential(layer, nnx.BatchNorm(4, rngs=nnx.Rngs(0))))
    (reason,) = tools.fold(model, data(3, 4), partial=True).refused.values()
    assert "layers/0 has a custom promote_dtype" in reason


class Standardized(nn.Conv):
    """A convolution that standardizes its kernel."""

    def param(self, name: str, *args: Any, **options: Any) -> Any:
        """Returns the standardized kernel, or another parameter as it is."""
        value = super().param(name, *args, **options)
        return jn.weight_standardization(value) if name == "kernel" else value


class Doubled(nn.BatchNorm):
    """A batch norm with twice its scale."""

    def param(self, name: str, *args: Any, **options: Any) -> Any:
        """Returns twice the scale, or another parameter as it is."""
        value = super().param(name, *args, **options)
        return 2 * value if name == "scale" else value


class StandardizedParam(nnx.Param):
    """A kernel that is standardized whenever it is read."""

    def __getitem__(self, key: Any) -> Any:
        """Returns the standardized kernel, or a part of it."""
        return jn.weight_standardization(super().__getitem__(...))[key]


class NnxStandardized(nnx.Linear):
    """A dense layer that standardizes its kernel."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Creates the kernel."""
        super().__init__(*args, **options)
        self.kernel = StandardizedParam(self.kernel[...])


class NnxDoubled(jnx.BatchNorm):
    """A batch norm with twice its scale."""

    def __getattribute__(self, name: str) -> Any:
        """Returns twice the scale, or another attribute as it is."""
        value = super().__getattribute__(name)
        return nnx.Param(2 * value[...]) if name == "scale" else value


VALID = {"kernel_size": (3, 3), "padding": "VALID", "name": "layer"}
CHANGED: dict[str, tuple[Any, bool]] = {
    "before": (lambda x: norm()(Standardized(4, **VALID)(x)), True),
    "before, in jit": (lambda x: jax.jit(lambda x: norm()(Standardized(4, **VALID)(x)))(x), True),
    "after": (lambda x: Standardized(4, **VALID)(norm()(x)), True),
    "norm": (lambda x: Doubled(True, name="norm")(nn.Conv(4, **VALID)(x)), False),
    "norm, before the layer": (lambda x: nn.Conv(4, **VALID)(Doubled(True, name="norm")(x)), False),
}
RNGS = nnx.Rngs(0)
NNX_CHANGED: dict[str, tuple[Any, Any, bool]] = {
    "before": (NnxStandardized, jnx.BatchNorm, True),
    "norm": (nnx.Linear, NnxDoubled, False),
}


def assert_refused_as_measured(folded: tools.Folded, norm: str, of_layer: bool) -> None:
    """Checks that nothing is folded, because of the layer or because of the norm."""
    assert not folded.pairs and folded.difference == 0
    (reason,) = folded.refused.values()
    assert ("with folded arrays does not return" in reason) == of_layer, reason
    assert (f"{norm} (" in reason) != of_layer and "they differ by" in reason, reason


@pytest.mark.parametrize("case", CHANGED)
def test_a_subclass_that_computes_something_else(case: str) -> None:
    """What the layer computes is compared, whichever methods its class overrides."""
    function, of_layer = CHANGED[case]
    model, x = Model(function), data(*IMAGE)
    folded = tools.fold(model, x, variables=linen(model, x), partial=True)
    assert_refused_as_measured(folded, "norm", of_layer)


@pytest.mark.parametrize("case", NNX_CHANGED)
def test_a_subclass_that_computes_something_else_in_nnx(case: str) -> None:
    """The same in NNX."""
    layer, norm, of_layer = NNX_CHANGED[case]
    layers = layer(4, 4, rngs=RNGS), norm(4, rngs=RNGS)
    folded = tools.fold(in_nnx(nnx.Sequential(*layers)), data(3, 4), partial=True)
    assert_refused_as_measured(folded, "layers/1", of_layer)


def test_a_folded_model_that_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never returned, whatever the cause."""
    model, x = Model(lambda x: norm()(conv()(x))), data(*IMAGE)
    variables = linen(model, x)

    def wrong(*args: Any) -> Any:
        smaller, changed = without_norms(*args)
        return smaller, jax.tree.map(lambda a: 1.1 * a, changed)

    monkeypatch.setattr(_fold, "without_norms", wrong)
    with pytest.raises(
        ValueError, match="must compute what the model computes; the outputs differ"
    ):
        tools.fold(model, x, variables=variables)


class Mutable(nn.Module):
    """A model that trains if its running statistics can change."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies a convolution and a norm."""
        training = self.is_mutable_collection("batch_stats")
        return nn.BatchNorm(not training, name="norm")(conv()(x))


def test_a_model_that_trains_if_its_statistics_can_change() -> None:
    """Its norms fold, because `fold` evaluates."""
    model, x = Mutable(), data(*IMAGE)
    variables = linen(model, x)
    folded = tools.fold(model, x, variables=variables)
    assert folded.pairs == {"norm": "conv"}
    y: Any = model.apply(variables, x)
    np.testing.assert_allclose(applied(folded.model, folded.variables, x), y, 1e-4, 1e-4)


def test_models_without_batch_norm_or_statistics() -> None:
    """There must be something to fold, and its statistics."""
    x = data(3, 4)
    dense = Layers((nn.Dense(4),))
    with pytest.raises(ValueError, match="at least one norm"):
        tools.fold(dense, x, variables=linen(dense, x))
    model = Layers((nn.Dense(4), nn.BatchNorm(True)))
    variables = linen(model, x)
    with pytest.raises(ValueError, match="mean and var for 'layers_1'"):
        tools.fold(model, x, variables={"params": variables["params"]})
    with pytest.raises(ValueError, match="where must match"):
        tools.fold(model, x, variables=variables, where="stem/*")
