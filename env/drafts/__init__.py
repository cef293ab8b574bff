"""Kinds of draft behind one interface: a causal language model, a feature draft, prompt lookup."""

from env.drafts.base import Draft
from env.drafts.causal import CausalDraft
from env.drafts.feature import FeatureDraft
from env.drafts.lookup import LookupDraft

__all__ = ["CausalDraft", "Draft", "FeatureDraft", "LookupDraft"]
