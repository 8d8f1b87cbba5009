"""Training: the loop, the student, the teacher and its cache, losses, optimizers, precision."""
