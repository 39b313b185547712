"""Measurements on volumes from any generator; knows files and arrays, never a pipeline."""
