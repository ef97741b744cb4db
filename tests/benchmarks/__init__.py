"""Fixed networks, measured always on the same terms."""
