"""The findings of `examine` for each batch norm: numbers, a table, a figure, and advice."""

import io
from typing import Any, NamedTuple

import numpy as np

from ...core._pool import Moments
from ...core._running import RunningStats
from ...core.calling._extras import require

FEW = 16
"""With fewer values per channel, the variance is uncertain by a third or more."""
FAR = 0.02
"""In the CIFAR-10 example, a mean KL divergence this large costs some points of evaluation accuracy."""
CHANCE = 4
"""Divided by the number of values, the KL divergence that a batch has by chance."""


class LayerHealth(NamedTuple):
    """The findings of `examine` for one batch norm. All fields are plain numbers, ready for logging.

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
    values: float  # number of values per channel in the batch; minimum over channels
    z: float  # |batch mean - running mean| / running standard deviation; maximum over channels
    kl: float  # KL divergence of the batch from the running normal distribution; mean over channels
    var_ratio: float  # batch variance / running variance; median over channels
    tiny: int  # channels with a running variance below epsilon, so that epsilon dominates
    dead: int  # channels that are constant in the batch, or whose scale is 0
    updated: bool  # whether the running statistics differ from those of a new layer
    finite: bool  # whether running statistics, scale and bias are all finite
    batch_finite: bool  # whether the moments of the layer's input are finite


class Examination(NamedTuple):
    """The result of `examine`. ``print`` shows it as a table, followed by advice.

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
    batch: dict[str, Moments]  # per channel, of the layer's input in training
    running: dict[str, RunningStats]
    output_change: float  # |evaluation - training| / |training| of the model's output, in 2-norms

    def advice(self) -> dict[str, str]:
        """Advice for each layer with a problem: the likely cause and the remedy."""
        found = {path: _advice(health) for path, health in self.layers.items()}
        return {path: text for path, text in found.items() if text}

    def __str__(self) -> str:
        """The table, and the advice."""
        from rich.console import Console  # imported late: only the table needs it
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
        # In a notebook, rich would display the table and leave the text empty, or color it.
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
        """Plots batch against running statistics of every channel, for the layers with the largest KL.

        Points on the line agree. Means are on the left, standard deviations on the right.

        Args:
            most: maximum number of layers, which are shown in the order of the model.

        Returns:
            A matplotlib figure: ``examination.figure().savefig("examination.png")``.
        """
        require("matplotlib", "A figure", "plots")
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
                axes.set_ylabel(f"batch {what}")
            row[0].set_title(path or "(the model)", fontsize="medium", loc="left")
        return figure


def _advice(h: LayerHealth) -> str:
    """Returns the first advice that applies: later problems often follow from earlier ones."""
    if not h.finite:
        return (
            "Running statistics, scale or bias are not finite, because some batch was not. Go back to a "
            "checkpoint or, if the weights are finite, re-estimate the statistics with tools.recalibrate; "
            "tools.keep_finite skips such batches from now on."
        )
    if not h.batch_finite:
        return (
            "The input of this layer is not finite, but its own state is: look at the batch and at the "
            "weights before this layer."
        )
    if not h.updated:
        return (
            "The running statistics are those of a new layer, mean 0 and variance 1: training did not "
            'store its updates. Call apply with mutable=["batch_stats"] and keep the updates it returns '
            "(tools.TrainState does), and estimate the statistics now with tools.recalibrate."
        )
    if h.values < FEW:
        return (
            f"Only {h.values:g} values per channel: the statistics of such a batch are mostly noise. Share "
            "them over devices with axis_name, accumulate with tools.accumulate, or use tools.swap to "
            "switch to a norm that does not depend on the batch."
        )
    if h.dead:
        return (
            f"{h.dead} of {h.channels} channels are dead: constant in the batch, or scaled by 0. Look at "
            "the layers before: a ReLU may never be active, or the learning rate may have been too high."
        )
    if h.tiny:
        return (
            f"{h.tiny} of {h.channels} channels have a running variance below epsilon, so epsilon dominates "
            "the divisor. This happens if the weights before the norm decay to almost nothing: exclude them "
            "from weight decay, or lower epsilon."
        )
    if h.kl > max(FAR, CHANCE / h.values):
        return (
            "The running statistics are far from the batch statistics: they lag behind the weights, or "
            "come from other data. Re-estimate them with tools.recalibrate; during training, lower the "
            "momentum or the learning rate."
        )
    return ""
