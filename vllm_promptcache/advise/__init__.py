"""Advice: what isolation moves in the first token of a user's own prompts, and what helps at which cost."""
