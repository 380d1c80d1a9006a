"""Which units give way: hit rates on traces beside LRU and the offline optimum."""
