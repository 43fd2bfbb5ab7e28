"""A compiled model, opened: run one batch. One file a backend."""
