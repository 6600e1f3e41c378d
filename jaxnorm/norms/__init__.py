"""One norm a file, its body a sentence in the words of the core."""
