"""Curation: which posts are fit to train on, and the files that they become.

`rules` look at one example at a time (encoding, length, format, personal data), `sift` keeps
what must be remembered across examples (duplicates, caps, the split), `files` writes a dataset
that is named by its content, `shelved` shares it with other workers, `examples` reads it back,
and `curate` runs a stream of posts through them in the order of the house: schema and encoding,
empty, short, long, format, personal data, blocklist and moderation, exact duplicates, own output,
persona cap, erased units, split.
Every drop is counted by its reason, with samples. Near duplicates have their place after the
exact ones.
"""

from tuneproof.curation.curate import CurationOptions, curate, curate_posts, curator
from tuneproof.curation.examples import read_examples
from tuneproof.curation.rules import redact
from tuneproof.curation.shelved import ShelvedDatasets
from tuneproof.curation.sift import KEPT_BACK, TRAIN, VALIDATION, side_of, split_key

__all__ = [
    "KEPT_BACK",
    "TRAIN",
    "VALIDATION",
    "CurationOptions",
    "ShelvedDatasets",
    "curate",
    "curate_posts",
    "curator",
    "read_examples",
    "redact",
    "side_of",
    "split_key",
]
