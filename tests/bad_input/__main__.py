"""The campaign as a command."""
