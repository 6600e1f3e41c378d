"""Tools that measure, estimate or pool running statistics."""
