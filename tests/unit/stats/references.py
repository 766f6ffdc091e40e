"""Answers of other libraries and of public data, as constants with their source.

The peers are not dependencies: gbstats needs pandas < 2 and numpy < 2, savvi brings a plotting
stack, confseq does not build on Python 3.11. Each number was computed once, in an environment of
its own, from the inputs named here: gbstats 0.8.0 (numpy 1.26.4, scipy 1.17.1), savvi 0.3.1
(`Multinomial`, numpy 2.4.6), tea-tasting 1.14.0 (`use_t=False` but for Welch).
"""

from tuneproof.stats.aggregates import Aggregate, Stratum

BASELINE = Aggregate(
    n=3024, sum_y=205.0, sum_yy=22.9, sum_c=30.2, sum_cc=0.52, sum_cy=2.3,
    sum_x=190.0, sum_xx=20.1, sum_xy=17.5,
)  # fmt: skip
CANDIDATE = Aggregate(
    n=336, sum_y=26.1, sum_yy=3.08, sum_c=3.1, sum_cc=0.05, sum_cy=0.28,
    sum_x=21.4, sum_xx=2.2, sum_xy=2.15,
)  # fmt: skip
STRATA = [Stratum(baseline=BASELINE, candidate=CANDIDATE)]

GBSTATS_SEQUENTIAL = {
    (0.05, 1500.0): (1.6905629666814567e-05, 0.019758226645465463, 0.04924094442974097),
    (0.05, 5000.0): (7.956519020329254e-05, 0.019695567084928985, 0.046907950224160486),
    (0.10, 1500.0): (0.0008846533467273127, 0.018890478928404966, 0.04699481736783592),
    (0.10, 5000.0): (0.0009450227397227746, 0.018830109535409506, 0.04981094536245763),
}
"""`SequentialTwoSidedTTest` (equation 9), absolute difference of the means of y:
(alpha, tuning parameter) to (lower, upper, p)."""

GBSTATS_WELCH = (0.00988756613756614, 0.003567580770796907, 0.016207551504335373)
"""`TwoSidedTTest`, absolute: difference, lower, upper at 0.05."""
GBSTATS_WELCH_P = 0.002242986440054384

GBSTATS_RATIO = (-0.02854312681057844, -0.049755891759116724, -0.007330361862040152)
"""`SequentialTwoSidedTTest` on `RatioStatistic` c/y, absolute, 0.05, tuning 1500."""
GBSTATS_RATIO_P = 0.0013435921916088844

GBSTATS_CUPED = 0.00939936975142961
"""`RegressionAdjustedStatistic`, difference; its theta is 0.567809950644949."""

TEA_TASTING_LIFT = (0.1458536585365855, 0.05530459217407668, 0.24417217220362164)
"""`Mean`, relative effect and log-ratio interval."""
TEA_TASTING_RATIO = (-0.19375301311816495, -0.27816024304039677, -0.09947575263242792)
"""`RatioOfMeans` c/y, relative."""
TEA_TASTING_CUPED = (0.13855238808739645, 0.06097303330437209, 0.22180441889481095)
"""`Mean` with covariate x, relative."""

SAVVI_ODDS = {
    (100.0, (691, 109)): 34.330737461407644,
    (1000.0, (691, 109)): 8.339635282864988,
    (300.0, (8800, 1200)): 119003597.38542153,
    (100.0, (8800, 1200)): 101153201.29278658,
}
"""Posterior odds at shares 0.9 and 0.1: (k, counts) to odds."""
SAVVI_THREE_ARMS = 0.2780599055899575
"""k = 100, shares 0.5, 0.25, 0.25, counts 520, 230, 250."""

OBRIEN_FLEMING_FIVE = (4.877, 3.357, 2.680, 2.290, 2.031)
"""Lan-DeMets, five even looks, one-sided 0.025 (Jennison and Turnbull 2000; R's gsDesign)."""
POCOCK_FIVE = (2.438, 2.427, 2.410, 2.397, 2.386)
"""The same with Pocock-type spending."""

COOKIE_CATS_PLAYERS = (44_700, 45_489)
COOKIE_CATS_DAY_1 = (20_034, 20_119)
COOKIE_CATS_DAY_7 = (8_502, 8_279)
"""Players of gate 30 and gate 40, and those who came back (public data set of DataCamp)."""

UDACITY_CLICKS = (17_293, 17_260)
UDACITY_ENROLMENTS = (3_785, 3_423)
UDACITY_PAYMENTS = (2_033, 1_945)
"""Free-trial screener, days with complete data (Udacity A/B testing course)."""


def successes(n: int, k: int) -> Aggregate:
    """`n` units of which `k` have y = 1."""
    return Aggregate(n=n, sum_y=float(k), sum_yy=float(k))


PAST_EXPERIMENTS = (
    [0.02, 0.05, 0.08, 0.11, 0.16, 0.24, 0.9, -0.02, -0.05, -0.08, -0.11, -0.16, -0.24, -0.9],
    [0.04, 0.06, 0.05, 0.08, 0.05, 0.09, 0.1] * 2,
)
"""Log-lifts and standard errors, symmetric about 0."""
R_PRIOR = (
    1.79735094986e-01, 4.88422525900e-07, 8.00729383661e-06, 9.90751076002e-05,
    8.61470443897e-04, 4.99719968425e-03, 1.90480959866e-02, 4.90373545049e-02,
    9.02434833171e-02, 1.26052906329e-01, 1.40934987319e-01, 1.32764886889e-01,
    1.07413382043e-01, 6.99545776686e-02, 3.67993130859e-02, 1.86731186405e-02,
    9.99389723217e-03, 5.59724051818e-03, 7.78542052780e-03,
)  # fmt: skip
"""The weights of the prior after them, written anew in R 4.2 with `pchisq` and `dnorm`."""
R_POSTERIORS = (
    (0.3, 0.1, 0.233671945163746, 0.270412662991792, 0.006992771836838, 0.440510114217211),
    (0.9, 0.1, 0.8691844223918, 1.3972667689061, 0.6701825551214, 1.0678462000734),
    (-0.1, 0.05, -0.073379231604656, -0.069462957714917, -0.177369113843382, 0.008230701361633),
)
"""R's `integrate` and `uniroot` on that prior times the likelihood: observed, standard error,
posterior mean, E[exp] - 1, and the 2.5 % and 97.5 % quantiles of the log-lift."""
