"""What `examine` finds of each batch norm: numbers, a table, a picture, and what to do."""

import io
from typing import Any, NamedTuple

import numpy as np

from ..core._pool import Moments
from ..core._running import RunningStats

FEW = 16
"""Fewer values than this for a channel make its variance uncertain by a third and more."""
FAR = 0.02
"""In the CIFAR-10 example a mean KL divergence of that much costs evaluation some points of accuracy."""
CHANCE = 4
"""Over the number of values, a KL divergence that a batch has by chance."""


class LayerHealth(NamedTuple):
    """What `examine` finds of one batch norm. All are numbers, to be logged as they are.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx, tools
        >>> model = jnx.BatchNorm(2, rngs=nnx.Rngs(0))
        >>> health = tools.examine(model, jnp.array([[0.0, 1.0], [2.0, 1.0]])).layers[""]
        >>> print({name: value for name, value in health._asdict().items() if name in ("z", "dead")})
        {'z': 0.9999949932098389, 'dead': 1}
    """

    channels: int
    values: float  # of each channel in the batch; the fewest
    z: float  # |batch mean - running mean| / running standard deviation; the largest of all channels
    kl: float  # of the normal distribution of the batch from the running one; the mean of all channels
    var_ratio: float  # batch variance / running variance; the median
    tiny: int  # channels with a running variance below epsilon, which then decides
    dead: int  # channels that are constant in the batch, or that scale multiplies by 0
    updated: bool  # running statistics are not those of a new layer
    finite: bool  # all of running statistics, scale and bias
    batch_finite: bool  # what the batch gives this layer


class Examination(NamedTuple):
    """What `examine` returns. ``print`` shows it as a table, with what to do below it.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxnorm import nnx as jnx, tools
        >>> model = jnx.BatchNorm(2, rngs=nnx.Rngs(0))
        >>> examination = tools.examine(model, jnp.ones((4, 2)))
        >>> print(*examination.layers, list(examination.advice()), examination.batch[""].mean)
         [''] [1. 1.]
    """

    layers: dict[str, LayerHealth]
    batch: dict[str, Moments]  # per channel, what the layer is given in training
    running: dict[str, RunningStats]
    output_change: float  # |evaluation - training| / |training|, of the model's output, as 2-norms

    def advice(self) -> dict[str, str]:
        """For each layer that wants something: its likely cause, and what mends it."""
        found = {path: _advice(health) for path, health in self.layers.items()}
        return {path: text for path, text in found.items() if text}

    def __str__(self) -> str:
        """The table, and the advice."""
        from rich.console import Console  # not for those who only import this package
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("batch norm", overflow="fold")
        names = ("channels", "values", "max z", "mean KL", "var ratio", "tiny", "dead", "")
        for name in names:
            table.add_column(name, justify="right")
        advice = self.advice()
        for path, h in self.layers.items():
            numbers = (f"{h.z:.3g}", f"{h.kl:.3g}", f"{h.var_ratio:.3g}", f"{h.tiny}", f"{h.dead}")
            mark = "look" if path in advice else "fine"
            table.add_row(path or "(the model)", f"{h.channels}", f"{h.values:g}", *numbers, mark)
        # In a notebook, rich would display the table and leave the text empty, or colour it.
        console = Console(file=io.StringIO(), width=110, force_jupyter=False, color_system=None)
        console.print(table)
        console.print(
            f"\nThe output changes by {self.output_change:.1%} between training and evaluation."
        )
        for text in dict.fromkeys(advice.values()):
            paths = [path or "(the model)" for path, said in advice.items() if said == text]
            console.print(f"\n{', '.join(paths)}:\n  {text}", highlight=False)
        return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]

    __repr__ = __str__

    def figure(self, most: int = 6) -> Any:
        """Batch against running statistics of every channel, for the layers with the largest KL.

        Points on the line agree. On the left the means, on the right the standard deviations.

        Args:
            most: how many layers; they stay in order.

        Returns:
            A matplotlib figure: ``examination.figure().savefig("examination.png")``.
        """
        from matplotlib.figure import Figure

        worst = sorted(self.layers, key=lambda path: -self.layers[path].kl)[:most]
        shown = [path for path in self.layers if path in worst]
        figure = Figure(figsize=(6.4, 2.4 * len(shown)), layout="constrained")
        panels: Any = figure.subplots(len(shown), 2, squeeze=False)
        for row, path in zip(panels, shown, strict=True):
            running, m = self.running[path], self.batch[path]
            pairs = ((running.mean, m.mean), (np.sqrt(running.var), np.sqrt(m.var)))
            for axes, what, (of_running, of_batch) in zip(row, ("mean", "std"), pairs, strict=True):
                axes.scatter(np.ravel(of_running), np.ravel(of_batch), s=9, alpha=0.7)
                axes.axline((float(np.mean(of_running)),) * 2, slope=1, color="0.6", lw=0.8)
                axes.set_xlabel(f"running {what}")
                axes.set_ylabel(f"{what} of the batch")
            row[0].set_title(path or "(the model)", fontsize="medium", loc="left")
        return figure


def _advice(h: LayerHealth) -> str:
    """The first that applies: what comes later is often a consequence."""
    if not h.finite:
        return (
            "Running statistics, scale or bias are not finite: some batch was not. Go back to a "
            "checkpoint, or, if the weights are finite, make new statistics with tools.recalibrate; "
            "tools.keep_finite skips such a batch from now on."
        )
    if not h.batch_finite:
        return (
            "What this layer is given is not finite, while its own state is: look at the batch, and at "
            "the weights before it."
        )
    if not h.updated:
        return (
            "The running statistics are those of a new layer, mean 0 and variance 1: training did not "
            'store what it updated. Call apply with mutable=["batch_stats"] and keep what it returns '
            "(tools.TrainState does), and make them now with tools.recalibrate."
        )
    if h.values < FEW:
        return (
            f"Only {h.values:g} values a channel: the statistics of such a batch are mostly chance. Share "
            "them over devices with axis_name, accumulate with tools.accumulate, or take a norm that "
            "needs no batch, with tools.swap."
        )
    if h.dead:
        return (
            f"{h.dead} of {h.channels} channels are dead: constant in the batch, or scaled by 0. Look at "
            "what comes before: a rectifier that never opens, a learning rate that was too high."
        )
    if h.tiny:
        return (
            f"{h.tiny} of {h.channels} channels have a running variance below epsilon, which then decides "
            "what they are divided by. Weights before the norm that decay to nothing do that: leave them "
            "out of weight decay, or lower epsilon."
        )
    if h.kl > max(FAR, CHANCE / h.values):
        return (
            "Running statistics are far from those of the batch: they lag behind the weights, or come "
            "from other data. Make new ones with tools.recalibrate; while training, lower momentum or the"
            " learning rate."
        )
    return ""
