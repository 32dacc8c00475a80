"""The composition that all ways in share: photos to identities, requests to pictures."""
