"""Readers of the formats that several data sets share, and where their folders are looked for."""
