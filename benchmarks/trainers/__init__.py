"""Trainers and real scripts that people use, with the lines of the monitor in them."""
