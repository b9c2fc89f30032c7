"""What devices elsewhere share: the agent that runs there, the messages, and the connection to it."""
