"""Everything that touches the user's model, optimizer and loader, and nothing that computes."""
