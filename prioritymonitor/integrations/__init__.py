"""One file for each trainer, free of arithmetic, made of public names only."""
