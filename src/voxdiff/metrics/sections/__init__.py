"""The parts of a report: each computes plain values from sets of volumes, and turns them into Markdown."""
