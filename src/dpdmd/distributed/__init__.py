"""Training on several processes: collective operations, and replicating or sharding networks."""
