"""Training runs with wrong labels, made once and recorded, so that any rule can be tried on them."""
