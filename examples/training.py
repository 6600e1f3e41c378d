"""Short training runs of the CIFAR-10 example's networks, for examples that compare several of them."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich import get_console
from rich.progress import Progress

from . import cifar10, data, measure

AfterStep = Callable[[int, cifar10.TrainState], None]


def fit(
    model: nn.Module,
    settings: cifar10.Settings,
    dataset: data.Dataset,
    *,
    variables: Any = None,
    after_step: AfterStep | None = None,
    note: str = "training",
) -> cifar10.TrainState:
    """Trains `model` for the epochs of `settings`, from `variables` or from initialization.

    `after_step` is called with the number of finished steps and the state, which the next step donates.
    """
    steps = step_count(settings, dataset)
    state, train_step = begun(model, settings, dataset)
    if variables is not None:
        params, stats = jax.tree.map(
            jnp.array, (variables["params"], variables.get("batch_stats", {}))
        )
        state = state.replace(params=params, batch_stats=stats, opt_state=state.tx.init(params))
    # A notebook needs ipywidgets to show a progress bar.
    with Progress(transient=True, disable=get_console().is_jupyter) as bar:
        task = bar.add_task(note, total=steps)
        for done, batch in enumerate(shuffled(dataset, settings, steps), 1):
            state = train_step(state, settings.seed, *batch)
            if after_step is not None:
                after_step(done, state)
            bar.update(task, completed=done)
    return state


@lru_cache(maxsize=16)
def network_of(settings: cifar10.Settings, classes: int, **of_norm: Any) -> Any:
    """Returns the network of `settings`, with `of_norm` as additional arguments of its norm.

    The same arguments return the same object, so nothing is compiled twice: pass settings with seed 0.
    """
    model: Any = cifar10.build_model(settings, classes)
    return model.clone(norm=partial(model.norm, **of_norm)) if of_norm else model


@lru_cache(maxsize=16)
def compiled(
    model: nn.Module, settings: cifar10.Settings, steps: int, classes: int
) -> tuple[Callable[..., cifar10.TrainState], Callable[..., cifar10.TrainState]]:
    """Returns functions for the initial state and the training step; both take the seed as an argument."""
    tx = cifar10.optimizer(settings, steps)
    return cifar10.initial_state(model, tx), cifar10.make_train_step(settings, classes)


def initial_variables(
    model: nn.Module, settings: cifar10.Settings, dataset: data.Dataset
) -> dict[str, Any]:
    """Returns the variables that `fit` starts from."""
    return begun(model, settings, dataset)[0].variables


def begun(
    model: nn.Module, settings: cifar10.Settings, dataset: data.Dataset
) -> tuple[cifar10.TrainState, Callable[..., cifar10.TrainState]]:
    """Returns the initial state and the training step."""
    steps = step_count(settings, dataset)
    blank = cifar10.replace(settings, seed=0)
    state_of, train_step = compiled(model, blank, steps, len(dataset.classes))
    one_image = measure.scaled(jnp.asarray(dataset.train_images[:1]))
    state = state_of(settings.seed, one_image)
    return cifar10.with_stem(state, settings, dataset.train_images), train_step


def step_count(settings: cifar10.Settings, dataset: data.Dataset) -> int:
    """The number of batches in all epochs."""
    return (settings.epochs or 1) * (len(dataset.train_labels) // settings.batch_size)


def shuffled(dataset: data.Dataset, settings: cifar10.Settings, steps: int) -> Iterator[Any]:
    """Yields `steps` batches, in a new order every epoch."""
    images, size = len(dataset.train_labels), settings.batch_size
    per_epoch = images // size
    for epoch in range(-(-steps // per_epoch)):
        order = np.random.default_rng((settings.seed, epoch)).permutation(images)
        for i in range(min(per_epoch, steps - epoch * per_epoch)):
            chosen = order[i * size : (i + 1) * size]
            yield dataset.train_images[chosen], dataset.train_labels[chosen]


def accuracy(model: nn.Module, variables: Any, dataset: data.Dataset, images: int = 0) -> float:
    """Fraction of the first `images` held-out images (0: all) classified correctly in evaluation mode."""
    some = slice(images or None)
    return measure.accuracy_with_running_statistics(
        model, variables, dataset.test_images[some], dataset.test_labels[some]
    )


def evaluated(model: Any, images: Any) -> jax.Array:
    """Runs a network for the tools, in evaluation mode and on images as they are stored."""
    return model(measure.scaled(jnp.asarray(images)), train=False)
