"""The ablation panel."""
