"""Experiments end to end: from prompts to a report."""

from mmlens.recipes.attribution_study import AttributionStudy, attribution_study, save_study

__all__ = ["AttributionStudy", "attribution_study", "save_study"]
