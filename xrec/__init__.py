"""xrec: for every user, the top K items from categories that the user does not buy yet."""

__version__ = "0.1.0"
