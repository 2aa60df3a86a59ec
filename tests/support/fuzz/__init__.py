"""States and run folders as nobody ever saved them, and what must hold for each."""
