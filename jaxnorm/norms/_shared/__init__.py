"""What norms share: their path from x to y, arguments, and the recipes of layers."""
