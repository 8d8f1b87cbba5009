"""What is computed from finished runs and datasets: comparisons, robustness, landscapes, reports, data quality."""
