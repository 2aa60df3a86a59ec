"""What the monitor is worth and what it costs, measured.

Each script is one command from the root of the repository, `python -m benchmarks.GROUP.NAME`, and
writes `results/GROUP/NAME.json`. Of the package only public names are imported, and modules that
compute without effects on anything.
"""
