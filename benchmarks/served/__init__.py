"""What the questions about serving share: models, states, pictures."""
