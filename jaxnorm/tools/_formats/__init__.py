"""How each library names and stores the arrays of a model, read into one form."""
