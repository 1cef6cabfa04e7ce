"""Ids to ids: the Step-1 decoder, loading it, decoding under the layout's grammar, merging."""
