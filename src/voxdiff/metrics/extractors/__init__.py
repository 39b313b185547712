"""Networks that turn volumes or slices into features, each named and pinned by the hash of its weights."""
