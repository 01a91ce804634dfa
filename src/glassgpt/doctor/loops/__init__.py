"""The checks of a training loop: batches, gradients, optimiser, schedule, evaluation."""
