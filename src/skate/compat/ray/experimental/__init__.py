"""``ray.experimental``: ``tqdm_ray``."""
