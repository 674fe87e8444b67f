"""The guardian process: nftables, the drop log and learnt addresses; CAP_NET_ADMIN and nothing else."""
