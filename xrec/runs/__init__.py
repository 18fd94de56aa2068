"""The list of stages, the ledger, progress and summary."""
