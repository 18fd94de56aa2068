"""What only the whole log can decide: repeats, returns, sessions, and who is no person."""
