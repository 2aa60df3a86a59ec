"""Gradients of the clean and the noisy group in a step, and the statistics that follow."""
