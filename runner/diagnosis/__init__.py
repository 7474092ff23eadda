"""Why two computations differ: where they first part, and the mistake that explains it, found by making it."""
