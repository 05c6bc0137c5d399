"""Which old revisions are forgotten. Pure; belongings.py deletes their ConfigMaps."""

from __future__ import annotations

from shoal_operator.world import World


def outlived(world: World, serving: str | None) -> tuple[str, ...]:
    """Revisions beyond revisionHistoryLimit, the one longest out of use first; `serving` is wanted, or stands in.

    One that still has replicas stays, however old: they mount its ConfigMap.
    """
    in_use = {replica.revision for replica in world.replicas}
    old = [revision.name for revision in world.revisions if revision.name != serving]
    excess = len(old) - world.deployment.spec.revision_history_limit
    unused = [name for name in old if name not in in_use]
    return tuple(unused[: max(0, excess)])
