"""Chest films and their reports: MIMIC-CXR and OpenI."""
