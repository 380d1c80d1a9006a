"""What all benchmarks share: settings, servers, load, samples, reports, plots."""
