"""What `check` asks of every implementation, and what "equal" means: cases, then examinee, then bounds."""
