"""Changes of a trace as Lua: each is one atomic step in Valkey. The keys stand in trace.py."""

from __future__ import annotations

from typing import Final

# KEYS: job, waiting list, sequence, lists.
# ARGV: id, wire form, payload hash, list, now, retention, token of this call, length or -1.
# Returns 'created', 'full', or the payload hash that is there. A call that is made again because
# its answer was lost finds its own token, and says 'created' again.
CREATE: Final = """
local known, token = unpack(redis.call('HMGET', KEYS[1], 'payload_hash', 'token'))
if known then
    if token == ARGV[7] then return 'created' end
    return known
end
local length_max = tonumber(ARGV[8])
if length_max >= 0 and redis.call('ZCARD', KEYS[2]) >= length_max then return 'full' end
local sequence = redis.call('INCR', KEYS[3])
redis.call('HSET', KEYS[1], 'wire', ARGV[2], 'payload_hash', ARGV[3], 'list', ARGV[4],
           'sequence', sequence, 'sent_at', ARGV[5], 'token', ARGV[7],
           'status', 'submitted', 'attempt', 0)
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('ZADD', KEYS[2], sequence, ARGV[1])
redis.call('SADD', KEYS[4], ARGV[4])
return 'created'
"""

# KEYS: job, claimed.  ARGV: id, attempt. A word of an earlier attempt, come late, changes nothing.
CLAIM: Final = """
local list, sequence, status, attempt =
    unpack(redis.call('HMGET', KEYS[1], 'list', 'sequence', 'status', 'attempt'))
if not list then return false end
local is_current = tonumber(ARGV[2]) >= tonumber(attempt)
if is_current and (status == 'submitted' or status == 'running') then
    redis.call('HSET', KEYS[1], 'status', 'running', 'attempt', ARGV[2])
    redis.call('HDEL', KEYS[1], 'progress')
end
redis.call('ZREM', 'nirvana:waiting:' .. list, ARGV[1])
local highest = tonumber(redis.call('HGET', KEYS[2], list) or 0)
if tonumber(sequence) > highest then redis.call('HSET', KEYS[2], list, sequence) end
return list
"""

# KEYS: job, sequence.  ARGV: id, now, expected status.
RESEND: Final = """
local list, status = unpack(redis.call('HMGET', KEYS[1], 'list', 'status'))
if not list or status ~= ARGV[3] then return false end
local sequence = redis.call('INCR', KEYS[2])
redis.call('HSET', KEYS[1], 'sequence', sequence, 'sent_at', ARGV[2], 'status', 'submitted')
redis.call('HDEL', KEYS[1], 'progress')
redis.call('ZADD', 'nirvana:waiting:' .. list, sequence, ARGV[1])
return list
"""

# KEYS: job.  ARGV: id. Returns how many traces went, 0 or 1.
REMOVE: Final = """
local list = redis.call('HGET', KEYS[1], 'list')
if list then redis.call('ZREM', 'nirvana:waiting:' .. list, ARGV[1]) end
return redis.call('DEL', KEYS[1])
"""

# KEYS: job.  ARGV: progress. A late word about a job that has ended, or is gone, is dropped.
# Returns the job's status.
PROGRESS: Final = """
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'running' then redis.call('HSET', KEYS[1], 'progress', ARGV[1]) end
return status
"""

# KEYS: job.  ARGV: id, status, attempt, result, retention.
FINISH: Final = """
local list = redis.call('HGET', KEYS[1], 'list')
if not list then return false end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'attempt', ARGV[3], 'result', ARGV[4])
redis.call('HDEL', KEYS[1], 'progress')
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('ZREM', 'nirvana:waiting:' .. list, ARGV[1])
return list
"""
