"""The train loader: which samples of the data set each batch holds."""
