"""Processes beside the library: the backend that serves the dashboard, its client, the worker, the doctor."""
