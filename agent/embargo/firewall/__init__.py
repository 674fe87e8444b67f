"""The nftables table as values: address ranges, rules, kernel messages, and learnt addresses."""
