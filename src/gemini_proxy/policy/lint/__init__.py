"""Notes on a policy that loads, where it may not mean what its author thinks."""
