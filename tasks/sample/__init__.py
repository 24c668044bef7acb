"""Talking-head videos made offline from a public-domain portrait."""
