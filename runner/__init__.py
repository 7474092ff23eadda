"""The command line: trains, samples, checks, compares. Start at __main__, then cli."""
