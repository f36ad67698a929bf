"""Whose states a job of the log may start from."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import OptionInvalid
from evaluation.trace import Trace


class SharedBy(StrEnum):
    """Among whom states are shared."""

    USER = "user"  # the product's default: a job without a user sees those of such jobs
    NAMESPACE = "namespace"
    ALL = "all"  # across namespaces, which the product never does: a ceiling


def sharing_groups(trace: Trace, shared_by: SharedBy) -> NDArray[np.int32]:
    """[n]: rows of the same number may start from each other's states."""
    if shared_by is SharedBy.USER and trace.users is None:
        raise OptionInvalid(f"{trace.name} names no users: sharing can only be namespace or all")
    match shared_by:
        case SharedBy.USER:
            assert trace.users is not None
            owners = np.stack([capacity_pools(trace, shared_by), trace.users], axis=1)
            return np.unique(owners, axis=0, return_inverse=True)[1].astype(np.int32)
        case SharedBy.NAMESPACE:
            return capacity_pools(trace, shared_by)
        case SharedBy.ALL:
            return np.zeros(len(trace), dtype=np.int32)


def capacity_pools(trace: Trace, shared_by: SharedBy) -> NDArray[np.int32]:
    """[n]: rows of the same number compete for the same capacity, a namespace's."""
    if trace.namespaces is None or shared_by is SharedBy.ALL:
        return np.zeros(len(trace), dtype=np.int32)
    pools: NDArray[np.int32] = trace.namespaces - trace.namespaces.min()
    return pools


def same_requests(trace: Trace) -> NDArray[np.int32]:
    """[n]: rows of the same number are one user's, in one namespace, for the same words."""
    words = {prompt: number for number, prompt in enumerate(dict.fromkeys(trace.prompts))}
    numbers = np.fromiter((words[prompt] for prompt in trace.prompts), np.int32, len(trace))
    users = np.zeros(len(trace), dtype=np.int32) if trace.users is None else trace.users
    asked = np.stack([capacity_pools(trace, SharedBy.NAMESPACE), users, numbers], axis=1)
    return np.unique(asked, axis=0, return_inverse=True)[1].astype(np.int32)
