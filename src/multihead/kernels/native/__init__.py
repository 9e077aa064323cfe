"""What the CPU kernel is made of: requests, the compiled code that answers them, and what torch lends it."""
