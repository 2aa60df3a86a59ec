"""What many ranks cost, and what becomes of a run of which one rank does what it should not."""
