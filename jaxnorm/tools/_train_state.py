"""Training state that includes running statistics."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax.training import train_state

from ..core._moving_average import moving_average
from ..core.calling._arguments import NUMBERS
from ..core.calling._explained import explained
from ._model._model_of import model_of
from ._model._types import Tree, TreeT

if TYPE_CHECKING:
    import optax


class TrainState(train_state.TrainState):
    """Flax's ``TrainState`` with ``batch_stats``, which users of batch norm in Linen otherwise add by hand.

    The fields are Flax's ``step``, ``apply_fn``, ``params``, ``tx`` and ``opt_state``, and ``batch_stats``.

    Example:
        >>> import flax.linen as nn, jax, jax.numpy as jnp, optax
        >>> from jaxnorm import tools
        >>> model = nn.Sequential([nn.Dense(3), nn.BatchNorm(use_running_average=False)])
        >>> x = jax.random.normal(jax.random.key(0), (8, 4))
        >>> state = tools.TrainState.of(model, model.init(jax.random.key(1), x), optax.sgd(0.1))
        >>> @jax.jit
        ... def step(state, x):
        ...     def loss(params):
        ...         variables = {"params": params, "batch_stats": state.batch_stats}
        ...         y, updated = state.apply_fn(variables, x, mutable=["batch_stats"])
        ...         return (y**2).mean(), updated
        ...     grads, updated = jax.grad(loss, has_aux=True)(state.params)
        ...     return state.apply_gradients(grads=grads, **updated)
        >>> state = step(state, x)
        >>> print(int(state.step), state.batch_stats["layers_1"]["mean"].shape)
        1 (3,)
    """

    batch_stats: Any = None

    @classmethod
    def of(
        cls, model: nn.Module, variables: Tree, tx: "optax.GradientTransformation"
    ) -> "TrainState":
        """Creates the state before the first step.

        Args:
            model: a Linen module.
            variables: the variables returned by its ``init``: ``params`` and, if any, ``batch_stats``.
            tx: the optimizer.

        Returns:
            A TrainState.

        Raises:
            ValueError: If these are not a Linen module and its variables.
        """
        if isinstance(model, nnx.Module):
            raise ValueError(
                f"model must be a Linen module; got an NNX model, {type(model).__name__}, which holds its "
                f"own variables. Use nnx.Optimizer(model, tx, wrt=nnx.Param), and nnx.state(model) for "
                f"checkpoints."
            )
        model_of(model, variables)
        params, batch_stats = (variables.get(name, {}) for name in ("params", "batch_stats"))
        return cls.create(apply_fn=model.apply, params=params, tx=tx, batch_stats=batch_stats)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that ``model.apply`` and the tools take."""
        # A state that was created without running statistics has None, which is no collection for Flax.
        stats = {} if self.batch_stats is None else self.batch_stats
        return {"params": self.params, "batch_stats": stats}


@explained
def average(old: TreeT, new: TreeT, decay: float | jax.Array) -> TreeT:
    """Updates an exponential moving average of weights and their running statistics.

        average ← decay · average + (1 - decay) · new

    Averaged weights need statistics of their own: the latest running statistics belong to weights several
    steps ahead. The same moving average of the running statistics is close, and good enough for occasional
    evaluation; `recalibrate` computes the exact ones. Variances are averaged as they are, without the
    differences between the means: the averaged network has one mean, not the spread of the earlier ones.

    Args:
        old: the average so far, ``{"params": ..., "batch_stats": ...}`` or any tree; at the start, the
            variables.
        new: a tree of the same structure, after a step.
        decay: the weight of the old average, in [0, 1], such as 0.999.

    Returns:
        A tree with the same dtypes. Leaves that are not floating, such as a batch count, come from ``new``.

    Raises:
        ValueError: If the trees differ in structure or shapes, or ``decay`` is outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import tools
        >>> old, new = {"mean": jnp.zeros(1), "count": 1}, {"mean": jnp.ones(1), "count": 2}
        >>> print(tools.average(old, new, decay=0.75))
        {'count': 2, 'mean': Array([0.25], dtype=float32)}
    """

    def moved(old: Tree, new: Tree) -> Any:
        if not jnp.issubdtype(jnp.result_type(new), jnp.inexact):
            return new
        old, new = jnp.asarray(old), jnp.asarray(new)
        return moving_average(old, new, decay).astype(old.dtype)

    NUMBERS["decay"].check("decay", decay)
    _check_alike(old, new)
    return jax.tree.map(moved, old, new)


def keep_finite(old: TreeT, new: TreeT, *evidence: object) -> TreeT:
    """Returns ``new``, or ``old`` if the step produced a value that is not finite.

    A single NaN batch permanently corrupts running statistics, and the weights with them. This skips the
    whole step: parameters, running statistics, and optimizer state.

    Args:
        old: the training state before the step: any tree.
        new: the training state after it, of the same structure.
        evidence: further values to check besides ``new`` itself, such as the loss.

    Returns:
        One of the two states, chosen on the device, so this works under jit.

    Raises:
        ValueError: If the trees differ in structure or shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxnorm import tools
        >>> print(tools.keep_finite({"mean": jnp.zeros(1)}, {"mean": jnp.array([jnp.nan])}))
        {'mean': Array([0.], dtype=float32)}
    """
    _check_alike(old, new)
    leaves = jax.tree.leaves((new, evidence))
    finite = [
        jnp.isfinite(leaf).all()
        for leaf in leaves
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    all_finite = jnp.stack([jnp.array(True), *finite]).all()
    return jax.tree.map(lambda old, new: jnp.where(all_finite, new, old), old, new)


def _check_alike(old: Tree, new: Tree) -> None:
    """Validates that two states have the same structure and shapes.

    Raises:
        ValueError: If they differ.
    """
    before, after = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(t)}
        for t in (old, new)
    )
    for path in {**before, **after}:
        if before.get(path) != after.get(path):
            raise ValueError(
                f"old and new must be trees of the same structure and shapes; got {path or 'a leaf'} of "
                f"shape {before.get(path, 'none')} in old and of shape {after.get(path, 'none')} in new. "
                f"Pass the same state before and after the step."
            )
