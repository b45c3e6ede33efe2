"""Many things in portions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from passerelle.domain.portions import portions


@given(st.lists(st.text(max_size=30)), st.integers(1, 40), st.integers(1, 5))
def test_nothing_is_lost_and_portions_are_bounded(texts: list[str], most_size: int, most_items: int) -> None:
    """Together they are the items in order; a portion over the size holds one item; no portion is empty."""
    made = list(portions(texts, len, most_size=most_size, most_items=most_items))
    assert [text for portion in made for text in portion] == texts
    for portion in made:
        assert 0 < len(portion) <= most_items
        assert len(portion) == 1 or sum(map(len, portion)) <= most_size
