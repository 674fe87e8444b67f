"""The shipped catalogue, made from facts.

    endpoints.csv, additions.csv    facts: one name, address or network a row, with its function, collateral and source
    overlay.toml                    what people decide: texts of the apps, neighbours, exemptions, two rules of placement
    facts.py                        both of them as values
    build.py                        facts → placements → list files and app.toml files
    check.py                        what must be wrong with no catalogue: public suffixes, neighbours, duplicates, …
    page.py                         docs/catalogue.md: what is in it, what is not known

Nothing below blocklists/ is written by hand: `python -m tools.catalogue` makes it, the same from the same facts.
"""
