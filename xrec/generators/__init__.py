"""One file a source of candidates."""
