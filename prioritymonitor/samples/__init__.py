"""What is known of each sample: its past, how noisy its label is, and what the user told us."""
