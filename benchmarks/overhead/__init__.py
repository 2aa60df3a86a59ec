"""What the monitor costs."""
