"""Norms with statistics over a batch."""
