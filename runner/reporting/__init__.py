"""Pages, pictures and event files of what runs, comparisons, studies and checks have left in their folders."""
