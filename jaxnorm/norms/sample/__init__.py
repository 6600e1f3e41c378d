"""Norms with statistics of each example."""
