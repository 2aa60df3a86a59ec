"""What the benchmarks learn from: images, and labels of which some are wrong."""
