"""The U-Net and how it learns: images + masks → checkpoint."""
