"""What `sweep` is made of: the space, the search, its workers with their trials, and what a search leaves."""
