"""Other systems' names over skate: ``skate.compat.ray``."""
