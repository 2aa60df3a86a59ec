"""What the monitor does to training when something goes wrong."""
