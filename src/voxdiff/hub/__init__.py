"""Converters from official checkpoints, the registry of shipped models, model cards."""
