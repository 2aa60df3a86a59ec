"""Training runs with wrong labels, recorded once, so that any rule can be tried on them."""
