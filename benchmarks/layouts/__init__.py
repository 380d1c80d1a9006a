"""Tokens computed by prompts as people lay them out: plain sent twice, and composed sent twice."""
