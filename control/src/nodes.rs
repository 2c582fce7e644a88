//! Who is alive: sessions, leases and the cluster of each node.
