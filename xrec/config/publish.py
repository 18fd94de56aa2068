"""Settings of the gate that lists pass before anybody reads them."""

from __future__ import annotations

from xrec.config.base import Frozen, Share


class Publish(Frozen):
    """What staged lists must keep to become the lists that downstream systems read."""

    min_user_share: Share = 0.95
    """Share of the users who must have a list: of those to whom something new can be recommended (without those who opted out)."""
    min_full_share: Share = 0.5
    """Share of the lists that must be `ranking.top_k` long, or as long as what is left for a user allows."""
    min_overlap: Share = 0.1
    """Mean share of a user's list that must stay from the lists of an earlier date; not asked where there are none."""
    not_below_popularity: bool = True
    """Whether the model that serves must not be below popularity for sure (its interval) on the newest select fold."""
