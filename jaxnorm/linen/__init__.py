"""The norms as Flax Linen modules: Flax's names, fields and variables, `jaxnorm`'s answers."""

from ._batch_norm import BatchNorm as BatchNorm
