"""The same program on a Ray cluster: translation only, no cluster code of its own."""
