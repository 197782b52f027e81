"""Note where a policy that loads may not mean what its author thinks."""
