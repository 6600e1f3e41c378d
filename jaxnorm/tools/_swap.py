"""Another norm in the place of every batch norm of a model."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from .. import linen as jnl, nnx as jnx
from ._models import model_of, names_of
from ._substitute import answering
from ._watch import (
    LINEN_BATCH_NORMS,
    NNX_BATCH_NORMS,
    LayerCall,
    Where,
    check_meant,
    is_meant,
)

Constructor: TypeAlias = Callable[..., Any]

# What means the same in every norm. Devices and momenta do only between batch norms.
_CARRIED = ("epsilon", "dtype", "param_dtype", "use_bias", "use_scale", "bias_init", "scale_init")
_CARRIED_BY_BATCH_NORM = (
    *("axis", "momentum", "axis_name", "axis_index_groups", "unbiased", "use_running_average"),
    *("track_running_stats", "virtual_batch_size", "activation", "save_as"),
)


def swap(
    model: Any,
    norm: str | Constructor,
    *,
    variables: Any = None,
    where: Where | None = None,
    **options: Any,
) -> Any:
    """The model with another norm in the place of its batch norms, which is not edited for it.

    For batches too small for batch norm, for differential privacy, which cannot mix examples, or to compare:
    group norm, say, in a network that somebody else wrote. Also ours in the place of Flax's batch norm, with
    ``norm="batch"``.

    Scale and bias carry over, as do epsilon and dtypes unless ``options`` say otherwise; running statistics
    only to a batch norm. Other norms compute another function: a trained model needs some training more.

    Args:
        model: a Linen module, or an NNX model, which stays as it is.
        norm: a name, as `jaxnorm.linen.get_norm` takes it, or a constructor of the same module system.
        variables: of the Linen module: ``params`` and ``batch_stats``, by which its batch norms are known.
        where: which layers, by path: a pattern such as ``"stem/*"`` or a function. None means all.
        options: arguments of the norm, such as ``num_groups=8``.

    Returns:
        A Linen module and its variables; or an NNX model with arrays of its own.

    Raises:
        ValueError: ``where`` means no batch norm, there is no such norm, or it cannot do what the batch norm
            in its place does: features along another axis than the last for group norm, an activation.
        TypeError: the norm has no such option.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp
        >>> from jaxnorm import tools
        >>> model = nn.Sequential([nn.Dense(8), nn.BatchNorm(use_running_average=False), nn.relu])
        >>> x = jax.random.normal(jax.random.key(0), (2, 4))
        >>> variables = model.init(jax.random.key(1), x)
        >>> swapped, variables = tools.swap(model, "group", variables=variables, num_groups=4)
        >>> print(jax.tree.map(jnp.shape, variables["params"]["layers_1"]), "batch_stats" in variables)
        {'bias': (8,), 'scale': (8,)} False
        >>> print(swapped.apply(variables, x).shape)
        (2, 8)
    """
    subject = model_of(model, variables)
    paths = check_meant(where, subject.paths(), "batch norm")
    if isinstance(model, nn.Module):
        linen_norm = _Norm.of(jnl.get_norm, norm, options, nn.Module)
        swapped = answering(model, LINEN_BATCH_NORMS, _Swapped(linen_norm, where))
        return swapped, subject.as_given(_carried_variables(subject.state, paths, linen_norm))
    nnx_norm = _Norm.of(jnx.get_norm, norm, options, nnx.Module)

    def replaced(path: tuple[Any, ...], node: Any) -> Any:
        name = "/".join(map(str, path))
        if not isinstance(node, NNX_BATCH_NORMS) or not is_meant(where, name):
            return node
        new = nnx_norm.like(node, name, node.num_features, rngs=nnx.Rngs(0))
        for variable in ("scale", "bias", "mean", "var", "count"):
            fresh, held = getattr(new, variable, None), getattr(node, variable, None)
            if fresh is not None and held is not None and nnx_norm.holds(variable):
                held.set_value(nnx_norm.cast(variable, held[...]))
                setattr(new, variable, held)
        return new

    return nnx.recursive_map(replaced, nnx.clone(model))


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A norm to be made, in the place of batch norms."""

    constructor: Constructor
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(
        cls,
        get_norm: Constructor,
        name: str | Constructor,
        options: Mapping[str, Any],
        system: type,
    ) -> "_Norm":
        """By name or constructor; with ``options`` that it knows.

        Raises:
            ValueError: it makes no norm of activations of this module system.
        """
        norm: Any = get_norm(name, **options) if isinstance(name, str) else name
        while isinstance(norm, functools.partial):
            norm, options = norm.func, {**norm.keywords, **options}
        made = cls(norm, tuple(sorted(options.items())))
        if (
            not isinstance(norm, type)
            or not issubclass(norm, system)
            or made.knows("layer_instance")
        ):
            raise ValueError(
                f"norm must be the name of a norm of activations or the class of one, in "
                f"flax.{system.__module__.split('.')[1]} as the model is; got {name!r}. Give its "
                f"arguments as options, as in norm=GroupNorm, num_groups=8."
            )
        inspect.signature(norm.__init__).bind_partial(norm, **options)
        return made

    def knows(self, name: str) -> bool:
        """Whether it has such an argument."""
        return name in self._arguments

    @property
    def _arguments(self) -> Mapping[str, inspect.Parameter]:
        init: Any = self.constructor.__init__  # NNX's classes themselves have no signature
        return inspect.signature(init).parameters

    @property
    def is_batch_norm(self) -> bool:
        """Whether running statistics carry over."""
        kinds = (*LINEN_BATCH_NORMS, *NNX_BATCH_NORMS)
        return isinstance(self.constructor, type) and issubclass(self.constructor, kinds)

    def holds(self, variable: str) -> bool:
        """Whether it has a scale, a bias, or running statistics."""
        options = dict(self.options)
        if variable in ("scale", "bias"):
            flag = f"use_{variable}"
            return self.knows(flag) and options.get(flag, True)
        counting = variable != "count" or options.get("momentum") is None
        return self.is_batch_norm and options.get("track_running_stats", True) and counting

    def cast(self, variable: str, array: Any) -> Any:
        """What it holds, in the dtype that the options ask for."""
        dtype = dict(self.options).get("param_dtype")
        return array.astype(dtype) if dtype and variable in ("scale", "bias") else array

    @property
    def begins_to_count(self) -> bool:
        """Whether the options ask for the plain average of all batches from now on."""
        return self.holds("count") and dict(self.options).get("momentum", 0) is None

    def like(self, layer: Any, path: str, *args: Any, **more: Any) -> Any:
        """The norm with what carries over from the batch norm ``layer``.

        Raises:
            ValueError: it cannot do what that does.
        """
        names = (*_CARRIED, *_CARRIED_BY_BATCH_NORM) if self.is_batch_norm else _CARRIED
        carried = {n: getattr(layer, n) for n in names if self.knows(n) and hasattr(layer, n)}
        if not self.is_batch_norm:
            for name in ("feature_axes", "reduction_axes"):
                # The last axis is that of the features; None, all but that of examples.
                if (
                    self.knows("feature_axes")
                    and self.knows(name)
                    and self._arguments[name].default == -1
                ):
                    carried[name] = layer.axis
        self._check(layer, path)
        return self.constructor(*args, **{**carried, **dict(self.options), **more})

    def _check(self, layer: Any, path: str) -> None:
        lost = [
            n for n in ("activation", "save_as") if getattr(layer, n, None) and not self.knows(n)
        ]
        if lost:
            raise ValueError(
                f"what takes the place of a batch norm must do all that it does; got {path!r} with "
                f"{lost[0]}={getattr(layer, lost[0])!r}, which {self.constructor.__name__} has not. Write it "
                f"after the norm in the model, or leave this layer out with where."
            )
        if layer.axis not in (-1, (-1,)) and not (self.knows("feature_axes") or self.is_batch_norm):
            raise ValueError(
                f"{self.constructor.__name__} takes the last axis for that of the features; got {path!r} "
                f"with axis={layer.axis}. Move the features to the end in the model, or leave this layer out "
                f"with where."
            )


@dataclasses.dataclass(frozen=True)
class _Swapped:
    """What a Linen model calls in the place of its batch norms."""

    norm: _Norm
    where: Where | None

    def __call__(self, call: LayerCall) -> Any:
        if not is_meant(self.where, call.path):
            return call.proceed(*call.args, **call.kwargs)
        x, *flag = call.args
        given = {**call.kwargs, **({"use_running_average": flag[0]} if flag else {})}
        if call.layer.use_running_average is not None and not self.norm.is_batch_norm:
            given["use_running_average"] = call.layer.use_running_average
        norm: Any = self.norm.like(call.layer, call.path, parent=call.layer.scope)
        takes = inspect.signature(type(norm).__call__).parameters
        return norm(x, **{name: value for name, value in given.items() if name in takes})


def _carried_variables(variables: Any, paths: list[str], norm: _Norm) -> Any:
    """``variables`` with what the norms at ``paths`` hold, and nothing else of the batch norms there."""
    layers = set(map(names_of, paths))

    def kept(collection: Any) -> Any:
        flat = flatten_dict(collection, keep_empty_nodes=True)
        of_others = {path: leaf for path, leaf in flat.items() if path[:-1] not in layers}
        of_norms = {
            path: norm.cast(path[-1], leaf)
            for path, leaf in flat.items()
            if path[:-1] in layers and norm.holds(path[-1])
        }
        if norm.begins_to_count:
            counts = {
                (*path[:-1], "count"): jnp.zeros(leaf.shape, jnp.int32)
                for path, leaf in of_norms.items()
                if path[-1] == "mean"
            }
            of_norms = {**counts, **of_norms}
        return unflatten_dict({**of_others, **of_norms})

    swapped = {
        name: kept(variables[name]) for name in ("params", "batch_stats") if name in variables
    }
    carried = {**variables, **swapped}
    if not carried.get("batch_stats"):
        carried.pop("batch_stats", None)
    return carried
