"""A Ray cluster on this machine of a head without CPUs and two nodes; one is killed when a line comes in."""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
if sys.stdin.readline():
    cluster.remove_node(nodes[1], allow_graceful=False)
    sys.stdin.readline()
cluster.shutdown()
