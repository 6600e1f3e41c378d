"""A complete training program with batch norm in Flax NNX, to copy: replace the model and the data.

    pip install "jaxnorm[flax]" optax scikit-learn
    python minimal_nnx.py

It classifies scikit-learn's digits (1,797 images of 8x8), in less than a minute on two cores.
`minimal.py` is the same program in Flax Linen.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jaxnorm import nnx as jnx

EPOCHS = 10
BATCH = 64
N_TEST = 360


class CNN(nnx.Module):
    """Two convolutions with batch norm, global average pooling, and a linear layer."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        # Batch norm would cancel a bias of the convolution before it.
        self.conv1 = nnx.Conv(1, 32, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = jnx.BatchNorm(32, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(32, 64, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = jnx.BatchNorm(64, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits (N, 10) of images (N, 8, 8, 1)."""
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.head(x.mean((1, 2)))


@nnx.jit
def train_step(
    model: CNN, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array
) -> jax.Array:
    """Updates the model, its running statistics and the optimizer; returns the loss before the step."""

    def loss_of(model: CNN) -> jax.Array:
        # Statistics of this batch normalize it, and update the running statistics in the model.
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
        return losses.mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def accuracy(model: CNN, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the fraction of images that are classified correctly."""
    return (model(images).argmax(-1) == labels).mean()


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
    model = CNN(nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(0.1, epochs * steps)
    sgd = optax.sgd(schedule, momentum=0.9, nesterov=True)
    optimizer = nnx.Optimizer(model, sgd, wrt=nnx.Param)  # running statistics are no parameters

    rng = np.random.default_rng(1)
    result, loss = 0.0, jnp.inf
    for epoch in range(1, epochs + 1):
        model.train()  # statistics of the batch
        order = rng.permutation(len(images))
        for batch in order[: steps * BATCH].reshape(steps, BATCH):
            loss = train_step(model, optimizer, images[batch], labels[batch])
        model.eval()  # running statistics
        result = float(accuracy(model, *test))
        print(f"epoch {epoch}: loss {loss:.4f}, test accuracy {result:.1%}")
    return result


if __name__ == "__main__":
    main()
