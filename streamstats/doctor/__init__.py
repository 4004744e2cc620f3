"""What streamstats finds on a machine, how fast it is there, and what is slow or broken."""
