"""What requests may ask for and what answers say."""
