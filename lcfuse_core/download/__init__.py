"""Download: what there is to fetch, transfers, archives, and what was verified of the files that are here."""
