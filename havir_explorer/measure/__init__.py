"""5. Picture and stimulus to scores, each with its chance level and protocol.

``compare`` holds the mathematics, ``pixels`` what is compared as pixels, ``networks`` the feature networks, ``protocols`` one row a metric for
each of the literature's ways to score, ``single`` the scores that a single reconstruction is shown with.
"""

from havir_explorer.measure.compare import correlation_distance, cosine, two_way, two_way_one
from havir_explorer.measure.pixels import pixcorr, ssim
from havir_explorer.measure.protocols import OWN, PROTOCOLS, Measure, Protocol, protocol
from havir_explorer.measure.records import OWN_TOWER, Features, Metric, Tower
from havir_explorer.measure.single import METRICS, score
from havir_explorer.measure.tower import open_clip_tower

__all__ = [
    "METRICS",
    "OWN",
    "OWN_TOWER",
    "PROTOCOLS",
    "Features",
    "Measure",
    "Metric",
    "Protocol",
    "Tower",
    "correlation_distance",
    "cosine",
    "open_clip_tower",
    "pixcorr",
    "protocol",
    "score",
    "ssim",
    "two_way",
    "two_way_one",
]
