"""A Ray cluster on this machine of a head without CPUs and two nodes; each line that comes in kills one.

Prints the address when all nodes are there, at the start and after a new node has taken the lost one's place.
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    nodes.append(cluster.add_node(num_cpus=1))
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
cluster.shutdown()
