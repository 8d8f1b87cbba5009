"""Analyses of finished runs and datasets: comparisons, robustness, landscapes, reports, data quality."""
