"""Model families against Transformers."""
