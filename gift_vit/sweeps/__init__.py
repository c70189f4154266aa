"""Many runs: what a sweep asks for, how far it is, and what is chosen from it."""
