"""One file per training stage; each is a Lightning module (merging apart) without config or paths
of its own beyond the folders it is given."""
