"""The demo: a small network on labels of which many are wrong, watched by the monitor."""
