"""Faults in the user's code, each let loose on a training run with and without the monitor."""
