"""The report: what a run did and found, as one page for people."""
