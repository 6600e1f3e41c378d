"""The data path: x -> moments -> [pool over devices] -> normalize, scale and shift. See README.md here."""
