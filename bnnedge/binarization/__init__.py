"""How floats become -1 and +1: the sign, its surrogate gradients, scales, and the contract that a method fills in."""
