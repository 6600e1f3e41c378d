"""Norms with a second input after x."""
