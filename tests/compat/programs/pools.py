"""ray.util.multiprocessing and joblib."""

import joblib
import numpy as np
import ray
from ray.util.joblib import register_ray
from ray.util.multiprocessing import Pool

ray.init(num_cpus=2)


def work(x):
    return x * x


with Pool(2) as pool:
    print(pool.map(work, range(10)))
    print(pool.starmap(pow, [(2, 3), (3, 2)]))
    print(pool.apply(work, (7,)))
    print(list(pool.imap(work, range(5), chunksize=2)))
    print(sorted(pool.imap_unordered(work, range(5))))
    print(pool.apply_async(work, (3,)).get(timeout=60))
    try:
        pool.map(lambda x: 1 // x, [1, 0])
    except ZeroDivisionError:
        print("division")

register_ray()
matrix = np.ones((100, 1000))
with joblib.parallel_backend("ray", n_jobs=2):
    print(joblib.Parallel()(joblib.delayed(work)(i) for i in range(10)))
    rows = joblib.Parallel()(joblib.delayed(np.sum)(matrix[i]) for i in range(3))
    print([float(row) for row in rows])
