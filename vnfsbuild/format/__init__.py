"""File formats: each module reads and writes one, and knows nothing of capsules."""
