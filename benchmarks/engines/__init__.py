"""Per-sample gradients of all parameters: what they cost, and what the head says without them."""
