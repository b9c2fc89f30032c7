"""What several methods share beyond the contract."""
