"""Where images of bulk scoring come from."""
