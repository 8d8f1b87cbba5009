"""What both study pages share."""
