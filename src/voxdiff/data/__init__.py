"""The digital cohort, datasets of NIfTI files and their preparation."""
