"""Imported before anything that imports Flax: without Flax, the error says what to install."""

from ._extras import require

require("flax", "Importing jaxnorm.linen, jaxnorm.nnx or jaxnorm.tools", "flax")
