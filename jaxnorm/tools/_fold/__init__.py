"""Folding batch norms into adjacent layers."""
