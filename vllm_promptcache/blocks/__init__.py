"""From plan to block tables, rows, slots and positions: pure arithmetic on NumPy arrays."""
