"""The ledger's SQL: each statement is one arrow of docs/state.md, section 2."""

from __future__ import annotations

from sqlalchemy import text

from cache.forgotten import IS_FORGOTTEN

CLAIM = text(f"""
    INSERT INTO jobs (id, namespace, owner, model, queue, job, payload_hash, status, attempt,
                      worker, lease_expires_at, submitted_at, claimed_at, deadline_at)
    SELECT :id, :namespace, :owner, :model, :queue, CAST(:job AS jsonb), :payload_hash, 'running',
           1, :worker, now() + make_interval(secs => :lease_s), :submitted_at, now(),
           CAST(:deadline_at AS timestamptz)
     WHERE NOT {IS_FORGOTTEN}
    ON CONFLICT (id) DO UPDATE
       SET status = 'running', attempt = jobs.attempt + 1, worker = EXCLUDED.worker,
           lease_expires_at = EXCLUDED.lease_expires_at, claimed_at = now()
     WHERE jobs.attempt < :attempts_max
       AND (jobs.status = 'submitted'
            OR (jobs.status = 'running' AND jobs.lease_expires_at < now()))
    RETURNING attempt, deadline_at, claimed_at
""")  # noqa: S608  a constant

RENEW = text("""
    UPDATE jobs
       SET lease_expires_at = now() + make_interval(secs => :lease_s)
      FROM unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[])) AS held (id, attempt)
     WHERE jobs.id = held.id AND jobs.attempt = held.attempt AND jobs.status = 'running'
    RETURNING jobs.id, jobs.attempt, jobs.cancel_requested_at IS NOT NULL AS is_cancelled
""")

FINISH = text("""
    UPDATE jobs
       SET status = :status, result = CAST(:result AS jsonb), finished_at = now(),
           lease_expires_at = NULL, steps_asked = :steps_asked, steps_run = :steps_run
     WHERE id = :id AND attempt = :attempt AND status = 'running'
    RETURNING id
""")

END_UNCLAIMED = text(f"""
    INSERT INTO jobs (id, namespace, owner, model, queue, job, payload_hash, status, attempt,
                      submitted_at, finished_at, deadline_at, result)
    SELECT :id, :namespace, :owner, :model, :queue, CAST(:job AS jsonb), :payload_hash, :status, 0,
           :submitted_at, now(), CAST(:deadline_at AS timestamptz), CAST(:result AS jsonb)
     WHERE NOT {IS_FORGOTTEN}
    ON CONFLICT (id) DO UPDATE
       SET status = EXCLUDED.status, finished_at = now(), result = EXCLUDED.result,
           lease_expires_at = NULL
     WHERE jobs.status = 'submitted'
        OR (jobs.status = 'running' AND jobs.lease_expires_at < now())
    RETURNING id
""")  # noqa: S608  a constant

REQUEST_CANCEL = text("""
    UPDATE jobs SET cancel_requested_at = COALESCE(cancel_requested_at, now())
     WHERE id = :id AND status = 'running'
    RETURNING id
""")

LAPSED = text("""
    SELECT id, attempt, queue, job
      FROM jobs
     WHERE status = 'running' AND lease_expires_at < now()
     ORDER BY lease_expires_at
     LIMIT :limit
""")

GIVE_BACK = text("""
    UPDATE jobs SET status = 'submitted', lease_expires_at = NULL, worker = NULL
     WHERE id = :id AND attempt = :attempt AND status = 'running' AND lease_expires_at < now()
    RETURNING id
""")

GIVEN_BACK = text("""
    SELECT id, attempt, queue, job
      FROM jobs
     WHERE status = 'submitted' AND claimed_at < now() - make_interval(secs => :older_than_s)
     ORDER BY claimed_at
     LIMIT :limit
""")

UNANNOUNCED = text("""
    SELECT id, result
      FROM jobs
     WHERE finished_at < now() - make_interval(secs => :older_than_s) AND announced_at IS NULL
     ORDER BY finished_at
     LIMIT :limit
""")

MARK_ANNOUNCED = text("UPDATE jobs SET announced_at = now() WHERE id = :id")

READ_RESULT = text("SELECT result FROM jobs WHERE id = :id AND finished_at IS NOT NULL")

IS_KNOWN = text("SELECT EXISTS (SELECT FROM jobs WHERE id = :id)")
