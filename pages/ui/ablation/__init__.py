"""What an ablation shows."""
