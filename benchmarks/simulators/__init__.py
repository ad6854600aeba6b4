"""The simulation question: its work, the exact schedules of it, and its peers."""
