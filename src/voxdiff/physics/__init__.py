"""Measurement operators (A, A_adjoint, A_dagger)."""
