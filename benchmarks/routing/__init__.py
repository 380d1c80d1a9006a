"""Where requests go that have several engines: how many of their units they find there."""
