"""What the Triton kernel is made of: the programs, and what they need to know of masks and biases."""
