"""The norms as functions, one per file, built from the primitives in `jaxnorm.core`."""
