"""How primitives become programs: inside of a program, outside of jit, and as XLA:CPU needs it."""
