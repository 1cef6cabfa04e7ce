"""One file per training stage; each is a Lightning module (merging apart).

None knows a config, nor paths beyond the folders it is given.
"""
