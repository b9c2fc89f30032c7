"""Turning floats into {-1, +1}: the sign, its gradient stand-ins, scales, and the contract a method fills in."""
