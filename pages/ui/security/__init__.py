"""Authentication, request checks, upload quotas."""
