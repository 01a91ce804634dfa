"""What happens when the model is called: modes, state, numbers, lengths, devices, caches, padding."""
