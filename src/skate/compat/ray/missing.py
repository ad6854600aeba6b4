"""What to say about the parts of Ray that skate does not have."""

LIBRARIES = (
    "air",
    "autoscaler",
    "dag",
    "data",
    "job_submission",
    "llm",
    "rllib",
    "serve",
    "train",
    "tune",
    "workflow",
)


def explain(module: str) -> str:
    """The message for an import of ``module``, a library of Ray's."""
    return (
        f"{module} is a library of Ray, and not part of skate.compat.ray, which has "
        "Ray's tasks, actors and ray.util. Run the program with the real Ray, and use "
        "skate.init(engine='ray') to have both."
    )
