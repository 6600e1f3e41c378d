"""What the tools ask a layer that keeps running statistics."""

from typing import Any, NamedTuple

from ...core._axes import Axes


class RunningNorm(NamedTuple):
    """How a layer keeps running statistics; its method ``running_norm`` returns this to `jaxnorm.tools`.

    For the tools to know a norm of your own, it must

    - keep ``mean`` and ``var`` in the collection ``batch_stats`` (NNX: as `nnx.BatchStat`),
    - have a field ``use_running_average``; NNX modules take it in the call as well, as in `nnx.BatchNorm`,
    - have a method ``running_norm()`` that returns a `RunningNorm`, or None if training updates nothing.

    Attributes:
        axis: feature axis or axes of x; the statistics have their shape.
        epsilon: added to the variance.
        momentum: weight of the *old* running value; None weights all batches equally.
        unbiased: whether training multiplies the batch variance by n / (n - 1) for the running variance.
        of_batch: whether ``mean`` and ``var`` estimate the mean and variance of x over all other axes.
        averaged: whether training averages exactly these two, as `jaxnorm.update_running_stats` does.

    Example:
        >>> from jaxnorm import linen as jnl
        >>> norm = jnl.SwitchableNorm(momentum=0.5).running_norm()
        >>> print(norm.axis, norm.momentum, norm.of_batch)
        -1 0.5 True
        >>> print(jnl.IterativeWhitening().running_norm().of_batch)  # it keeps a matrix
        False
    """

    axis: Axes
    epsilon: Any
    momentum: Any
    unbiased: bool = False
    of_batch: bool = True
    averaged: bool = True
