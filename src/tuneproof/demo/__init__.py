"""The demo's world: posts with a hidden taste behind their outcomes, and an application that
keeps posting.

Nothing of the pipeline is simulated here, only what surrounds it in production: the posts of
the weeks before (`writing`, `posts`), the audience (`audience`), and the application that asks
models for posts, tells what it served and what came of it (`traffic`). All draws are named by
the seed, the hour and a number (`draws`), so the same stretch asked for twice, also after a
kill, gives the same events.
"""

from __future__ import annotations

from tuneproof.demo.audience import Audience, Reaction, features
from tuneproof.demo.posts import POSTS_TABLE, PostsTable, seed_posts, seeded_posts
from tuneproof.demo.traffic import TURNING_SHARE, DemoTraffic, Sink, broken_from_half
from tuneproof.demo.writing import STYLES, TOPICS, Draft, write

__all__ = [
    "POSTS_TABLE",
    "STYLES",
    "TOPICS",
    "TURNING_SHARE",
    "Audience",
    "DemoTraffic",
    "Draft",
    "PostsTable",
    "Reaction",
    "Sink",
    "broken_from_half",
    "features",
    "seed_posts",
    "seeded_posts",
    "write",
]
