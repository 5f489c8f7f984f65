"""A short soak: its parts run, are measured, and a leak would be noticed."""

from __future__ import annotations

from soak import Curve, is_flat, soak


def test_all_parts_are_measured() -> None:
    found = soak({"training": 128, "acting": 20, "cycles": 2})
    assert found.keys() == {"training", "acting", "cycles"}
    for part in found.values():
        assert len(part["curve"]) >= 1
        assert all(point["rss_mib"] > 0 and point["descriptors"] > 0 for point in part["curve"])


def curve(memory: float, descriptors: float) -> Curve:
    return [{"steps": n, "rss_mib": 200 + n * memory, "descriptors": 9 + int(n * descriptors)} for n in range(50)]


def test_leaks_are_noticed() -> None:
    assert is_flat(curve(0, 0))
    assert not is_flat(curve(1, 0))
    assert not is_flat(curve(0, 0.1))
