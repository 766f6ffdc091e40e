"""A small statistics library for experiments that are looked at every hour.

Pure and usable by itself: numbers in, numbers out, numpy and scipy only. In the order in which
an analysis uses them:

    aggregates    sums over units that add and subtract: what the store keeps
    effects       an arm's means, ratios, quantiles, and what is compared (`Metric`)
    contrasts     the comparison of two arms, stratified by phase
    sequential    confidence sequences and non-inferiority, at any look
    declared      the group-sequential test at declared looks (also `sequential.group_sequential`)
    spending      the bounds of declared looks
    fixed         one look at the end: Welch, proportions, the chi-squared split check
    splits        e-values for the split of the exposed, and of the absent outcomes
    guardrails    e-values for errors and latency; engagement drop; gross failure
    multiplicity  many segments and cycles: e-BH, the alpha ledger
    shrinkage     what a winner's lift will be worth
    design        sample size, power, duration and expected stopping time, before it starts
    brownian      first crossings, which spending and design are computed from

The modules are the interface: `from tuneproof.stats import sequential`.
"""
