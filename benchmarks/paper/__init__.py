"""The claims and the theory of arXiv 2306.02533 against what is measured."""
