"""PML, the Prompt Markup Language: documents to syntax trees. `text` escapes text for documents."""

from vllm_promptcache.pml.escape import text

__all__ = ["text"]
