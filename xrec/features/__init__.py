"""Per fold: indexes, categories, interactions, balance weights, the sequence export."""
