"""Cost profiles: what recomputing and swapping cost on an accelerator.

All of it is pure and imports neither vLLM nor torch:

    types       what a profile is made of
    check       what must hold of its numbers
    load        JSON to profile and back; the profile that fits a node
    curve       seconds against size, between measured points and beyond them
    model       CostModel: the three questions a scheduler asks
    correction  factors learned from observed times; CorrectedCostModel
    decision    recompute or swap
    roofline    profiles from datasheet figures (datasheets), for want of measured ones
    generate    writes the modelled files of data/
    plot, show  a table, or a figure, of one profile

docs/cost-profiles.md says where the numbers come from and how wrong they may be.
"""
