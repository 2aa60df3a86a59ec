"""When the monitor stops, what it hands back, and which labels it names, beside its rivals."""
