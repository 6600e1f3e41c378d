"""A complete training program with batch norm in Flax Linen, to copy: replace the model and the data.

    pip install "jaxnorm[flax]" optax scikit-learn
    python minimal.py

It classifies scikit-learn's digits (1,797 images of 8x8), in less than a minute on two cores.
`minimal_nnx.py` is the same program in Flax NNX.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jaxnorm import linen as jnl, tools

EPOCHS = 10
BATCH = 64
N_TEST = 360


class CNN(nn.Module):
    """Two convolutions with batch norm, global average pooling, and a linear layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns logits (N, 10) of images (N, 8, 8, 1)."""
        for features in (32, 64):
            x = nn.Conv(features, (3, 3), use_bias=False)(x)  # batch norm would cancel a bias
            x = jnl.BatchNorm(momentum=0.9)(x, use_running_average=not train)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


@jax.jit
def train_step(
    state: tools.TrainState, images: jax.Array, labels: jax.Array
) -> tuple[tools.TrainState, jax.Array]:
    """Returns the state after one step, and the loss before it."""

    def loss_of(params: dict) -> tuple[jax.Array, dict]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        # Statistics of this batch normalize it, and update the running statistics, which come back.
        logits, updated = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated

    (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradients, **updated), loss


@jax.jit
def accuracy(state: tools.TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the fraction of images that are classified correctly, with running statistics."""
    logits = state.apply_fn(state.variables, images, train=False)
    return (logits.argmax(-1) == labels).mean()


def load() -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns images (N, 8, 8, 1) and labels (N,), for training and for the test."""
    pixels, classes = load_digits(return_X_y=True)
    images = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    labels = jnp.asarray(classes, jnp.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:N_TEST], order[N_TEST:]
    return (images[train], labels[train]), (images[test], labels[test])


def main(epochs: int = EPOCHS) -> float:
    """Trains, prints the accuracy after each epoch, and returns the last one."""
    (images, labels), test = load()
    steps = len(images) // BATCH  # in each epoch; the rest of the images is left out
    model = CNN()
    variables = model.init(jax.random.key(0), images[:1], train=False)
    schedule = optax.cosine_decay_schedule(0.1, epochs * steps)
    state = tools.TrainState.of(model, variables, optax.sgd(schedule, momentum=0.9, nesterov=True))

    rng = np.random.default_rng(1)
    result, loss = 0.0, jnp.inf
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(images))
        for batch in order[: steps * BATCH].reshape(steps, BATCH):
            state, loss = train_step(state, images[batch], labels[batch])
        result = float(accuracy(state, *test))
        print(f"epoch {epoch}: loss {loss:.4f}, test accuracy {result:.1%}")
    return result


if __name__ == "__main__":
    main()
