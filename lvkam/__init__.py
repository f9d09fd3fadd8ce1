"""LV-KAM in PyTorch."""
