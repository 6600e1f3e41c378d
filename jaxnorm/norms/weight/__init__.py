"""Norms of weights."""
