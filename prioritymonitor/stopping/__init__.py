"""When to stop, and the weights of the right moment."""
