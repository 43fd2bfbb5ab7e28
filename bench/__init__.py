"""Every engine against the PyTorch baseline, speed and agreement in one row."""
