"""The protocol of the cache: its model explored, failing traces replayed on the code, random walks over the code."""
