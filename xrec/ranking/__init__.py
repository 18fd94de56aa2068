"""The top-K kernel, the blend, reasons."""
