"""The layers of Flax that the tools fold norms into."""

import flax.linen as nn
from flax import nnx

CONVS = (nn.Conv, nnx.Conv)
TRANSPOSED = (nn.ConvTranspose, nnx.ConvTranspose)
DENSE = (nn.Dense, nn.DenseGeneral, nnx.Linear, nnx.LinearGeneral)
EMBEDS = (nn.Embed, nnx.Embed)
LAYERS = (*CONVS, *TRANSPOSED, *DENSE, *EMBEDS)
