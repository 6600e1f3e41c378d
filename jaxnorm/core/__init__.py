"""The data path: x -> moments -> [pool over devices] -> normalize and affine. See README.md beside this."""
