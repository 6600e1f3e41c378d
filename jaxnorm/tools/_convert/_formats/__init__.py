"""Reads the arrays of a model, as each library names and stores them, into a common form."""
