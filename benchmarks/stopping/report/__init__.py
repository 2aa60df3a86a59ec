"""Tables of the documentation, written from the results."""
