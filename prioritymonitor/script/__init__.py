"""`prioritymonitor run`: a training script as it is, with a monitor on what it trains."""
