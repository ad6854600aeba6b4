"""What the cluster holds, asked of every node."""

from __future__ import annotations

import ray
from ray._private import internal_api
from ray.core.generated.common_pb2 import WORKER


def collect() -> dict[str, int]:
    """``objects`` that this process refers to; bytes and workers of all nodes."""
    core = ray._private.worker.global_worker.core_worker
    counts = core.get_all_reference_counts()
    used = workers = 0
    for node in ray.nodes():
        if node["Alive"]:
            stats = internal_api.node_stats(
                node["NodeManagerAddress"], node["NodeManagerPort"], False
            )
            used += stats.store_stats.object_store_bytes_used
            workers += sum(
                one.worker_type == WORKER for one in stats.core_workers_stats
            )
    return {"objects": len(counts), "store_bytes": used, "workers": workers}
