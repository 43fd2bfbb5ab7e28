"""From a checkpoint to something deployable, with proof."""
