"""The command line: trains, samples, checks, compares. Start at __main__, then cli."""

VERSION = "0.1.0"
