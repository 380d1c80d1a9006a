"""Moved placements beside encoded ones: what rounding does to the first token."""
