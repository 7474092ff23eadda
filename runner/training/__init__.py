"""What `train` is made of: a run on its way, and what it leaves at its end."""
