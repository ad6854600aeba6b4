"""MapReduce (Ray's documentation): count the words of a text."""

from collections import Counter

import ray

TEXT = """Errors should never pass silently. Unless explicitly silenced.
In the face of ambiguity, refuse the temptation to guess. There should be one and
preferably only one obvious way to do it. Now is better than never. Although never is
often better than right now.""".lower()


@ray.remote(num_returns=3)
def map_documents(documents, npartitions):
    outputs = [[] for _ in range(npartitions)]
    for document in documents:
        for word in document.split():
            outputs[len(word) % npartitions].append((word.strip(".,"), 1))
    return tuple(outputs)


@ray.remote
def apply_reduce(*results):
    reduced = Counter()
    for result in results:
        for key, value in result:
            reduced[key] += value
    return dict(reduced)


lines = TEXT.splitlines()
map_results = [map_documents.remote([line], 3) for line in lines]
reducers = [
    apply_reduce.remote(*[partition[i] for partition in map_results]) for i in range(3)
]
counts = {}
for partial in ray.get(reducers):
    counts.update(partial)
for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:12]:
    print(f"{word}: {count}")
