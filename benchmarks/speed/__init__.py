"""Times and memory. A file, a benchmark: `add_arguments`, `run`, `tables`, `figures`, `panels`."""
