"""Reads a bundle's report back from its manifest, so that a bundle that gains a precision keeps what was proved."""

from collections.abc import Mapping
from typing import Any

from export.parity.greedy import Difference
from export.parity.int8_cache import CacheQuality
from export.parity.precision import Quality
from export.parity.report import INT8_CACHE, Refusal, Report, Row
from runtime.bundle.manifest import NAME, Manifest, build
from runtime.errors import BundleError
from runtime.proof.rounded import parse_all, read_standards


def read_report(manifest: Manifest) -> Report:
    """The report whose `as_manifest` is in a manifest; BundleError if it is damaged, or of an older version."""
    try:
        return parse(manifest, manifest.parity)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"the parity report of {NAME} cannot be read ({error!r}); export the bundle again") from None


def parse(manifest: Manifest, parity: Mapping[str, Any]) -> Report:
    greedy, cache = parity["greedy"], parity[INT8_CACHE]
    return Report(
        rows=tuple(build(Row, row) for row in parity["tensors"]),
        tokens=int(greedy["tokens"]),
        probes=tuple(manifest.probes()),
        differences=tuple(build(Difference, one) for one in greedy["differences"]),
        together=tuple(build(Difference, one) for one in greedy["differences_side_by_side"]),
        qualities=tuple(build(Quality, quality) for quality in parity["precisions"]),
        likelihoods=manifest.likelihoods(),
        lens=manifest.lens_likelihoods(),
        rounded=tuple(read_standards(manifest)),
        caches=tuple(parse_cache(quality) for quality in cache["qualities"]),
        rounded_caches=tuple(parse_all(manifest, cache, f"parity.{INT8_CACHE}")),
        refused=tuple(build(Refusal, refusal) for refusal in parity["refused"]),
        largest_activation=parity["largest_activation"],
        known_cases=tuple(map(str, parity["cases"])),
    )


def parse_cache(content: Mapping[str, Any]) -> CacheQuality:
    pairs = {name: tuple(map(float, content[name])) for name in ("at_once", "token_by_token")}
    return build(CacheQuality, {**content, **pairs})
