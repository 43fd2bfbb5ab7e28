"""From a set of images to a set of mask files."""
