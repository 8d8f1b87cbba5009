"""The augmentation page."""
