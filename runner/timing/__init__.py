"""What `bench` is made of: the workloads, who is timed and how they take turns, the profile, the scaling."""
