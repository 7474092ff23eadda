"""`check --module FILE`: a user's own cell or model beside the reference. Start at check."""
