"""Kinds of draft behind one interface: a causal language model, a feature draft, prompt lookup; and a merger."""

from specgym.env.drafts.base import Draft
from specgym.env.drafts.causal import CausalDraft
from specgym.env.drafts.feature import FeatureDraft
from specgym.env.drafts.lookup import LookupDraft
from specgym.env.drafts.merged import MergedDraft

__all__ = ["CausalDraft", "Draft", "FeatureDraft", "LookupDraft", "MergedDraft"]
