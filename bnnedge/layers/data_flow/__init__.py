"""How data flows through a user's network: what reaches each layer, and where its result goes."""
