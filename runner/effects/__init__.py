"""What `differences` measures: every known difference between the frameworks, as a function that measures its size."""
