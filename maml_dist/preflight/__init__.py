"""What is tried before a run starts, so that what cannot work is said in seconds."""
