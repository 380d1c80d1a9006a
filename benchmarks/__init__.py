"""Benchmarks of vllm-promptcache: ``python -m benchmarks NAME``; see docs/performance.md."""
