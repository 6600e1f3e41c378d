"""Tools around norms: trees of variables in, trees of variables out; for Flax's own layers as well."""

from ._convert import convert as convert
from ._parity import Parity as Parity, assert_parity as assert_parity
from ._replicas import pool_replicas as pool_replicas
from ._torch_options import torch_options as torch_options
