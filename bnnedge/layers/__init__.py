"""Binary layers in their training form and in their deploy form."""
