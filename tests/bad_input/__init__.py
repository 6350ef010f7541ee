"""Bad input as a campaign: what is drawn, what must come of it, and how the tries are counted."""
