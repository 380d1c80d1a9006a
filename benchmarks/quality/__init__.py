"""How good answers are over modules that were encoded apart: see docs/quality.md."""
