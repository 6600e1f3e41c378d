"""Conversion of a model's arrays between libraries."""
