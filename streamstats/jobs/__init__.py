"""Jobs: planning, measuring and counting, on threads or a cluster, and what is done with their results."""
